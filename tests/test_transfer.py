"Chapter 16: bodies, heads, first layers, published weights, groups, vision_learner and fine_tune"
import copy,hashlib,inspect,pickle,socket,threading
from functools import partial
from http.server import SimpleHTTPRequestHandler,ThreadingHTTPServer
from pathlib import Path

import numpy as np,pytest,torch,torch.nn as nn
from PIL import Image
from fastcore.all import L,noop
from safetensors.torch import save_file
from torch.testing import assert_close

from scratchai.core import *
from scratchai.block import *
from scratchai.crops import *
from scratchai.data import *
from scratchai.layers import *
from scratchai.learner import *
from scratchai.losses import *
from scratchai.module import *
from scratchai.optimizer import *
from scratchai.recorder import *
from scratchai.resnet import *
from scratchai.schedule import *
from scratchai.transfer import *
from scratchai.transform import *
from scratchai.types import *

tiny = partial(XResNet, ResBlock, 1, [1,1,1,1], stem_szs=(4,4,64), widen=.125)
def small(**kwargs): return tiny(**{'n_out':5, **kwargs})

class Net(nn.Module):
    "As torchvision's: named layers, a pooling, a linear layer"
    def __init__(self, n_in=3):
        super().__init__()
        self.conv1,self.bn1,self.relu = nn.Conv2d(n_in, 8, 3, 2, 1, bias=False),nn.BatchNorm2d(8),nn.ReLU()
        self.layer1 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.avgpool,self.fc = nn.AdaptiveAvgPool2d(1),nn.Linear(16, 1000)
    def forward(self, x): return self.fc(self.avgpool(self.layer1(self.relu(self.bn1(self.conv1(x))))).flatten(1))

def kinds(m): return [type(o).__name__ for o in m]
def label(o): return 'ab'[int(Path(o).stem)%4<2]
def halves(items): return range(0, len(items), 2),range(1, len(items), 2)

@pytest.fixture
def loaders(tmp_path):
    for i in range(16): Image.effect_noise((40,32), 40+30*(i%4<2)).convert('RGB').save(tmp_path/f'{i}.png')
    def f(**kwargs): return ImageDataLoaders.from_path_func(tmp_path, get_image_files(tmp_path, recurse=False), label,
        **{**dict(splitter=halves, size=32, bs=4, seed=1, num_workers=0, device='cpu'), **kwargs})
    return f
@pytest.fixture
def dls(loaders): return loaders()

@pytest.fixture
def file(tmp_path):
    set_seed(7)
    save_file(small().state_dict(), tmp_path/'small.safetensors')
    return tmp_path/'small.safetensors'

# cut and head

def test_where_the_last_pooling_is():
    for m,yes in ((nn.MaxPool2d(2),True), (nn.AdaptiveAvgPool1d(1),True), (AdaptiveConcatPool2d(),True), (MaxPool(),True),
        (nn.Sequential(nn.ReLU(), nn.Sequential(nn.AvgPool3d(2))),True), (Sequential(ReLU(), Sequential(AvgPool())),True),
        (nn.Linear(2,2),False), (small()[0],False)): assert has_pool_type(m) is yes

def test_cutting():
    m,net,x = small(),Net(),torch.randn(2,3,32,32)
    assert kinds(cut_model(m))==kinds(m)[:8] and kinds(cut_model(m, -4))==kinds(m)[:8] and len(cut_model(m, 3))==3
    assert kinds(cut_model(net))==['Conv2d','BatchNorm2d','ReLU','Sequential'] and isinstance(cut_model(net), Module)
    assert cut_model(net)(x).shape==(2,16,8,8) and cut_model(net)[0] is net.conv1
    assert cut_model(net, lambda m: m.layer1) is net.layer1
    for m,cut in ((Sequential(Linear(2,2)),None), (small(),0), (small(),-12)):
        with pytest.raises(ValueError, match='Nothing is left of the .* children of .*: say where to `cut`'): cut_model(m, cut)

def test_lin_bn_drop():
    assert kinds(LinBnDrop(4, 3))==['BatchNorm','Linear'] and kinds(LinBnDrop(4, 3, bn=False))==['Linear']
    assert kinds(LinBnDrop(4, 3, p=.3, act=ReLU()))==['BatchNorm','Dropout','Linear','ReLU'] and LinBnDrop(4, 3, p=.3)[1].p==.3
    first = LinBnDrop(4, 3, p=.1, act=ReLU(), lin_first=True)
    assert kinds(first)==['Linear','ReLU','BatchNorm','Dropout'] and first[2].shape==(3,) and LinBnDrop(4, 3)[0].shape==(4,)
    assert LinBnDrop(4, 3)[1].bias is None and LinBnDrop(4, 3, bn=False)[0].bias is not None

def test_range():
    x = torch.randn(5, 3)
    assert_close(SigmoidRange(-1, 3)(x), torch.sigmoid(x)*4-1)

def head(**kwargs):
    "Names of the layers of a head, the dropouts, and the shapes of the parameters"
    h = create_head(8, 3, **kwargs)
    return ' '.join(kinds(h)),[o.p for o in h if isinstance(o, Dropout)],[tuple(o.weight.shape) for o in h if isinstance(o, Linear)]

def test_heads_as_fastais():
    block = 'BatchNorm Dropout Linear ReLU '
    pool,last = 'AdaptiveConcatPool2d Flatten ','BatchNorm Dropout Linear'
    assert head()==(pool+block+last, [.25,.5], [(512,16),(3,512)])
    assert head(concat_pool=False)==('AdaptivePool Flatten '+block+last, [.25,.5], [(512,8),(3,512)])
    assert head(pool=False)==(block+last, [.25,.5], [(512,8),(3,512)])
    assert head(lin_ftrs=[100,50], ps=[.1,.2,.3])==(pool+block*2+last, [.1,.2,.3], [(100,16),(50,100),(3,50)])
    assert head(lin_ftrs=[100,50], ps=.4)[1]==[.2,.2,.4] and head(lin_ftrs=[])==(pool+last, [.5], [(3,16)])
    assert head(first_bn=False)[0]==pool+block[10:]+last and head(bn_final=True)[0]==pool+block+last+' BatchNorm'
    assert head(lin_first=True)==(pool+'Dropout Linear ReLU BatchNorm Dropout Linear', [.25,.5], [(512,16),(3,512)])
    assert head(y_range=(0,5))[0]==pool+block+last+' SigmoidRange' and head(ps=0.)[0].count('Dropout')==0
    assert create_head(8, 3, bn_final=True)[-1].momentum==.01 and create_head(8, 3)[-1].bias is None
    out = create_head(8, 3, y_range=(2,5)).eval()(torch.randn(4,8,3,3)*50)
    assert out.shape==(4,3) and out.min()>=2 and out.max()<=5
    ps = [.1,.2]
    create_head(8, 3, ps=ps, lin_first=True)
    assert ps==[.1,.2]
    with pytest.raises(ValueError, match='`ps` has 2 probabilities for 3 layers'): create_head(8, 3, lin_ftrs=[10,10], ps=[.1,.2])

# the first layer

@pytest.mark.parametrize('make,conv', [(small, lambda m: m[0][0]), (Net, lambda m: m.conv1), (resnet18, lambda m: m.conv1)])
def test_other_channels(make, conv):
    def adapted(n, pretrained=True):
        set_seed(1)
        m = make()
        was = conv(m).weight.detach().clone()
        adapt_first_layer(m, n, pretrained)
        return m,was,conv(m).weight
    for n in (1,2,4,6):
        m,was,new = adapted(n)
        want = was.sum(1, keepdim=True) if n==1 else was[:,:2]*1.5 if n==2 else torch.cat([was, torch.zeros_like(was)], 1)[:,:n]
        assert new.equal(want) and new.requires_grad and any(p is new for p in m.parameters())
        assert m(torch.randn(2,n,32,32)).shape[0]==2 and in_channels(m)==n
        assert not adapted(n, False)[2][:,:1].equal(want[:,:1]) and adapted(n, False)[2].std()>.01
    m,was,new = adapted(3, False)
    assert new.equal(was) # nothing to do
    with pytest.raises(ValueError, match='takes 4 channels; only one of 3'): adapt_first_layer(adapted(4)[0], 1)

def test_no_first_convolution():
    m = Sequential(Linear(2,2))
    assert adapt_first_layer(m, 3) is None
    with pytest.raises(ValueError, match='no convolution'): adapt_first_layer(m, 1)

# published weights

@pytest.fixture
def site(tmp_path, monkeypatch):
    "A server with weights of resnet18; what was asked for is in `site.log`"
    monkeypatch.setenv('SCRATCHAI_HOME', str(tmp_path/'home'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch'))
    (tmp_path/'www').mkdir()
    set_seed(5)
    state = resnet18().state_dict()
    torch.save({k:v for k,v in state.items() if 'num_batches' not in k}, tmp_path/'www/w.pth') # as in the oldest files
    name = f"resnet18-{hashlib.sha256((tmp_path/'www/w.pth').read_bytes()).hexdigest()[:8]}.pth"
    (tmp_path/'www/w.pth').rename(tmp_path/'www'/name)
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args): super().__init__(*args, directory=tmp_path/'www')
        def log_message(self, *args): self.server.log.append(self.path)
    s = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    s.log,s.state,s.file,s.kept = [],state,tmp_path/'www'/name,tmp_path/'home/weights'/name
    monkeypatch.setitem(weight_urls, 'resnet18', f'http://127.0.0.1:{s.server_port}/{name}')
    threading.Thread(target=s.serve_forever, args=(.02,), daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()

def test_published_weights(site):
    m = resnet18(pretrained=True)
    for k,v in m.state_dict().items(): assert v.equal(site.state[k]), k
    assert fetch_weights('resnet18')==site.kept and resnet18(weights='DEFAULT').fc.bias.equal(site.state['fc.bias'])
    assert len(site.log)==1 and [o.name for o in site.kept.parent.iterdir()]==[site.kept.name] # fetched once, nothing else left
    body = create_body(resnet18)
    assert body[0].weight.equal(site.state['conv1.weight']) and len(body)==8
    assert create_body(resnet18, n_in=1)[0].weight.equal(site.state['conv1.weight'].sum(1, keepdim=True))

def test_which_networks_have_weights():
    assert list(weight_urls)==[f'resnet{n}' for n in (18,34,50,101,152)] and set(weight_urls)<=set(pretrained_weights)
    assert weight_urls['resnet50']=='https://download.pytorch.org/models/resnet50-11ad3fa6.pth'
    with pytest.raises(ValueError, match='no pretrained weights for xresnet50, only for: resnet18, resnet34'): xresnet50(pretrained=True)
    with pytest.raises(ValueError, match='has no pretrained weights, only resnet18, .*give a file'): create_body(small)

def test_a_damaged_file(site):
    site.file.write_bytes(site.file.read_bytes()[:-9]+b'x'*9)
    with pytest.raises(ValueError, match='is damaged: its SHA-256 begins with'): fetch_weights('resnet18')
    assert not site.kept.exists() # what was downloaded is of no use
    site.kept.write_bytes(b'mine')
    with pytest.raises(ValueError, match=f'{site.kept.name} is damaged.*Remove it'): fetch_weights('resnet18')
    assert site.kept.read_bytes()==b'mine' # what was there is the user's

def test_torchvisions_own_copy(site, tmp_path):
    (tmp_path/'torch/hub/checkpoints').mkdir(parents=True)
    own = tmp_path/'torch/hub/checkpoints'/site.file.name
    own.write_bytes(site.file.read_bytes())
    assert fetch_weights('resnet18')==own and site.log==[]

def test_no_network(site, monkeypatch):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        monkeypatch.setitem(weight_urls, 'resnet18', f'http://127.0.0.1:{s.getsockname()[1]}/{site.file.name}')
        with pytest.raises(ConnectionError, match=f'could not be downloaded.*put it at .*home/weights/{site.file.name} yourself'):
            create_body(resnet18)
    site.kept.parent.mkdir(parents=True, exist_ok=True)
    site.kept.write_bytes(site.file.read_bytes()) # as the message says
    assert create_body(resnet18)[0].weight.equal(site.state['conv1.weight'])

class Evil:
    def __reduce__(self): return (Path.touch, (Path('evil'),))

def test_files_of_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    w = {'a.weight':torch.randn(3), 'bn.running_mean':torch.zeros(2)}
    save_file(w, 'w.safetensors')
    torch.save(w, 'w.pth')
    torch.save(dict(model=w, opt={}), tmp_path/'both.pth')
    for f in ('w.safetensors', 'w.pth', tmp_path/'both.pth'):
        sd = load_weights(f)
        assert list(sd)==['a.weight','bn.running_mean','bn.num_batches_tracked'] and sd['a.weight'].equal(w['a.weight'])
    torch.save({'bn.running_mean':torch.zeros(2), 'bn.num_batches_tracked':torch.tensor(7)}, 'n.pth')
    assert load_weights('n.pth')['bn.num_batches_tracked']==7
    torch.save({'a':Evil()}, 'evil.pth')
    Path('short.pth').write_bytes(Path('w.pth').read_bytes()[:200])
    Path('short.safetensors').write_bytes(Path('w.safetensors').read_bytes()[:20])
    for f in ('evil.pth','short.pth','short.safetensors'):
        with pytest.raises(ValueError, match=f'^{f} is damaged, or holds other things than weights'): load_weights(f)
    assert not Path('evil').exists()
    with pytest.raises(FileNotFoundError, match='nothing'): load_weights('nothing.pth')

# bodies

def test_a_body_from_a_file(file, tmp_path, dls):
    x = torch.randn(2,3,32,32)
    set_seed(7)
    want = small().eval()[:8](x)
    for arg in (file, str(file)): assert create_body(tiny, pretrained=arg).eval()(x).equal(want) # its head has other outputs
    assert create_body(small(), pretrained=file).eval()(x).equal(want) and not create_body(small(), pretrained=True).eval()(x).equal(want)
    learn = vision_learner(dls, tiny, pretrained=file)
    torch.save(learn.model.state_dict(), tmp_path/'two.pth') # the names of body and head
    assert create_body(tiny, pretrained=tmp_path/'two.pth').eval()(x).equal(want)
    torch.save(Net().state_dict(), tmp_path/'net.pth')
    net,got = torch.load(tmp_path/'net.pth'),create_body(Net, pretrained=tmp_path/'net.pth')
    assert got[0].weight.equal(net['conv1.weight']) and got[1].running_mean.equal(net['bn1.running_mean'])

def test_files_that_do_not_fit(file, tmp_path):
    with pytest.raises(ValueError, match=r'small.safetensors does not fit ResNet: 120 of 120 tensors, such as conv1.weight, are not there'):
        create_body(resnet18, pretrained=file)
    m,before = small(stem_szs=(6,4,64)),small(stem_szs=(6,4,64)).state_dict()
    before = {k:v.clone() for k,v in m.state_dict().items()}
    with pytest.raises(ValueError, match='does not fit XResNet: 6 of .* tensors, such as 0.0.weight, are not there, or of another shape'):
        create_body(m, pretrained=file)
    assert all(v.equal(before[k]) for k,v in m.state_dict().items()) # nothing was loaded

def test_bodies_of_networks_and_of_functions(file):
    net = Net()
    assert create_body(net)[0] is net.conv1 and len(create_body(net, cut=2))==2 and create_body(net, cut=lambda m: m.layer1) is net.layer1
    w = net.conv1.weight.detach().clone()
    assert create_body(net, n_in=4)[0].weight[:,:3].equal(w) and net.conv1.in_channels==4
    assert not create_body(net := Net(), n_in=1, pretrained=False)[0].weight.equal(net.conv1.weight.new_zeros(1)) and in_channels(net)==1
    def legacy(pretrained=False): return Net() if not pretrained else Net(5)
    def modern(weights=None, pretrained=None): return Net() if weights is None else Net({'DEFAULT':6}[weights])
    assert [in_channels(create_body(f, p and 0 or 5 if f is legacy else 6, pretrained=p)) for f,p in ((legacy,True),(modern,True))]==[5,6]
    assert in_channels(create_body(legacy, pretrained=False))==3==in_channels(create_body(modern, pretrained=False))
    assert kinds(create_body(XResNetOf5, pretrained=False))==kinds(small()[:8]) # a class
    with pytest.raises(TypeError, match="not the text 'convnext_tiny'.*timm.create_model"): create_body('convnext_tiny')

class XResNetOf5(XResNet):
    def __init__(self): super().__init__(ResBlock, 1, [1,1,1,1], n_out=5, stem_szs=(4,4,64), widen=.125)

# groups

def test_groups_are_fastais():
    "Numbers of tensors and of weights in the three groups, as fastai 2.8 has them for 5 outputs"
    for f,n,size in ((resnet18, [30,30,6], [683072,10493440,529920]), (xresnet18, [9,57,6], [28768,11166976,529920])):
        groups = model_meta[f]['split'](create_vision_model(f, 5, pretrained=False))
        assert [len(o) for o in groups]==n and [sum(p.numel() for p in o) for o in groups]==size
    assert set(model_meta)==set(vars(models).values())
    assert {(o['cut'], o['stats']==imagenet_stats) for f,o in model_meta.items() if f.__name__[0]=='r'}=={(-2,True)}
    assert {(o['cut'], o['stats']==imagenet_stats) for f,o in model_meta.items() if f.__name__[0]=='x'}=={(-4,True)}
    assert 'cut' in str(model_meta[resnet50])

def test_default_split():
    m = create_vision_model(Net(), 3)
    assert [len(o) for o in default_split(m)]==[7,6] and len(params(m))==13 and params(nn.Linear(2,2))[0].shape==(2,2)

# models

def test_vision_models():
    x = torch.randn(2,3,32,32)
    set_seed(3)
    m = create_vision_model(tiny, 4, pretrained=False)
    assert m(x).shape==(2,4) and len(m)==2 and m[1][2].shape==(num_features_model(Sequential(m[0]))*2,)
    w = m[1][4].weight
    assert abs(w.std()*(w.shape[1]/2)**.5-1)<.05 and len(create_vision_model(tiny, 4, pretrained=False, cut=5)[0])==5
    assert create_vision_model(tiny, 4, pretrained=False, n_in=1)(x[:,:1]).shape==(2,4)
    def ones(t): return t.data.fill_(1.)
    own = create_vision_model(tiny, 4, pretrained=False, init=ones)
    assert own[1][4].weight.min()==1==own[1][8].weight.min() and own[0][0][0].weight.min()<0 and own[1][2].bias.abs().sum()==0
    custom = Sequential(AdaptivePool(), Flatten(), nn.Linear(64, 4))
    with torch.no_grad(): custom[2].bias.fill_(3.)
    m = create_vision_model(tiny, 4, pretrained=False, custom_head=custom)
    assert m[1] is custom and custom[2].bias.sum()==0 and m(x).shape==(2,4) # `init` is for it too
    with torch.no_grad(): custom[2].bias.fill_(3.)
    assert create_vision_model(tiny, 4, pretrained=False, custom_head=custom, init=None)[1][2].bias.sum()==12
    with pytest.raises(TypeError, match='`ps` has no effect on a `custom_head`'): create_vision_model(tiny, 4, pretrained=False, custom_head=custom, ps=.1)
    kw = dict(concat_pool=False, lin_ftrs=[20], ps=.2, first_bn=False, bn_final=True, y_range=(0,1))
    h = create_vision_model(tiny, 4, pretrained=False, **kw)[1]
    assert kinds(h)==kinds(create_head(64, 4, **kw)) and h[2].p==.1
    assert kinds(create_vision_model(tiny, 4, pretrained=False, lin_first=True)[1])[2:4]==['Dropout','Linear']
    assert kinds(create_vision_model(nn.Sequential(Net(), nn.AdaptiveAvgPool2d(1)), 4, cut=lambda m: nn.Sequential(*m[0].children())[:4], pool=True)[1])[0]=='AdaptiveConcatPool2d'

# learners

def test_signature():
    want = dict(normalize=True, n_out=None, pretrained=True, loss_func=None, splitter=None, cbs=None, metrics=None, path=None,
        model_dir='models', wd=None, wd_bn_bias=False, train_bn=True, moms=(.95,.85,.95), cut=None, init=kaiming_normal_,
        custom_head=None, concat_pool=True, pool=True, lin_ftrs=None, ps=.5, first_bn=True, bn_final=False, lin_first=False,
        y_range=None, n_in=3, lr=.001, opt_func=Adam)
    got = {k:o.default for k,o in inspect.signature(vision_learner).parameters.items() if k not in ('dls','arch')}
    assert list(inspect.signature(vision_learner).parameters)[:9]==['dls','arch','normalize','n_out','pretrained','loss_func','opt_func','lr','splitter']
    assert got==want and cnn_learner is vision_learner
    tune = inspect.signature(Learner.fine_tune).parameters
    assert {k:tune[k].default for k in list(tune)[2:7]}==dict(base_lr=2e-3, freeze_epochs=1, lr_mult=100, pct_start=.3, div=5.)
    assert {'wd','moms','cbs','div_final'}<=set(tune)

def learner(dls, *args, **kwargs): return vision_learner(dls, *args or (tiny,), **{'pretrained':False, **kwargs})

def test_arguments_of_a_learner(dls, tmp_path, file):
    learn = learner(dls, metrics=accuracy, cbs=Callback(after_fit=noop), path=tmp_path/'p', model_dir='m', loss_func=mse, lr=.1,
        wd=.3, moms=(.9,.8,.9), opt_func=SGD)
    assert (learn.path,learn.model_dir,learn.loss_func,learn.lr,learn.wd,learn.moms)==(tmp_path/'p','m',mse,.1,.3,(.9,.8,.9))
    assert learn.opt_func is SGD and len(learn.cbs)==len(learner(dls).cbs)+1 and len(L(learn.metrics))==1
    assert learner(dls).loss_func is dls.loss_func and learner(dls).model[1][-1].weight.shape[0]==2
    assert learner(dls, n_out=7).model[1][-1].weight.shape[0]==7
    assert learner(dls, n_in=1).model[0][0][0].ni==1 and learner(dls, ps=.1).model[1][7].p==.1 and len(learner(dls, cut=5).model[0])==5
    assert [len(o) for o in learner(dls).splitter(learn.model)]==[len(params(learn.model[0])),6]
    assert learner(dls, splitter=trainable_params).splitter is trainable_params
    assert learner(dls, resnet18).splitter is model_meta[resnet18]['split']
    class Nothing:
        train,valid = [],[]
    with pytest.raises(ValueError, match='give `n_out`'): learner(Nothing())
    with pytest.raises(TypeError, match='colour'): learner(dls, colour=1)

def is_norm(k): return k.split('.')[-2]=='1' # the part 1 of a `ConvLayer`
def trains(m): return {k for k,p in m.named_parameters() if p.requires_grad}
def test_freezing(dls, file):
    learn = learner(dls, pretrained=file)
    norm = {f'0.{k}' for k,o in learn.model[0].named_parameters() if is_norm(k)}
    assert trains(learn.model)=={f'1.{k}' for k,_ in learn.model[1].named_parameters()}|norm
    assert not trains(learner(dls, pretrained=file, train_bn=False).model[0])
    assert len(trains(learner(dls).model))==len(params(learn.model)) and learner(dls).opt is None
    learn.unfreeze()
    assert len(trains(learn.model))==len(params(learn.model))
    learn.freeze_to(1)
    assert trains(learn.model)=={f'1.{k}' for k,_ in learn.model[1].named_parameters()}|norm
    a,b = learner(dls, pretrained=file),learner(dls, pretrained=file, wd_bn_bias=True)
    assert [sum(o.opt.state[p].get('do_wd', True) for p in params(o.model)) for o in (a,b)]==[len(params(a.model))-len(L(norm_bias_params(a.model)).concat()), len(params(b.model))]

def test_the_frozen_part_stays(dls, file):
    learn = learner(dls, pretrained=file)
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    changed = {k for k,v in learn.model.state_dict().items() if not v.equal(before[k])}
    assert all(is_norm(k) for k in changed if k[0]=='0') and any('running_mean' in k for k in changed if k[0]=='0')
    assert '1.4.weight' in changed

def norms(dls): return [[type(f).__name__ for f in o.after_batch].count('Normalize') for o in dls.loaders]
def test_normalising(loaders, file):
    model_meta[tiny] = model_meta[xresnet18]
    try:
        dls = loaders()
        raw,mean = dls.valid.one_batch()[0].as_subclass(torch.Tensor),torch.tensor(imagenet_stats).view(2,3,1,1)
        for normalize,pretrained,n_in,want in ((False,file,3,[0,0]), (True,False,3,[0,0]), (True,file,1,[0,0]), (True,file,3,[1,1]), (True,file,3,[1,1])):
            vision_learner(dls, tiny, normalize=normalize, pretrained=pretrained, n_in=n_in)
            assert norms(dls)==want
        assert_close(dls.valid.one_batch()[0].as_subclass(torch.Tensor), (raw-mean[0])/mean[1])
        assert dls.train.after_batch[-1] is dls.valid.after_batch[-1]
        own = loaders(batch_tfms=Normalize.from_stats([.5]*3, [.5]*3))
        vision_learner(own, tiny, pretrained=file)
        assert norms(own)==[1,1] and own.train.after_batch[-1].mean.flatten().tolist()==[.5]*3
        by_hand = DataLoaders(*[DataLoader([(torch.zeros(32,32,3).byte(), 0)]*4, 2, n_workers=0) for _ in range(2)], batch_tfms=[ToFloat()], vocab=['a','b'], device='cpu')
        vision_learner(by_hand, tiny, pretrained=file)
        assert norms(by_hand)==[1,1]
        assert_close(by_hand.valid.one_batch()[0], (-mean[0]/mean[1]).expand(2,3,32,32))
        vision_learner(DataLoaders([], [], vocab=['a','b'], device='cpu'), tiny, pretrained=file) # lists have no transforms
    finally: del model_meta[tiny]

# fine_tune

class Rates(Callback):
    order = 99
    def __init__(self): self.seen,self.pos = [],[]
    def after_batch(self):
        if not self.training: return
        self.seen.append([h['lr'] for h in self.opt.hypers])

def tuned(dls, file, *args, epochs=2, **kwargs):
    learn,cb = vision_learner(dls, tiny, pretrained=file, splitter=lambda m: L(m[0][:3], m[0][3:], m[1:]).map(params)),Rates()
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(epochs, *args, cbs=cb, **kwargs)
    return np.array(cb.seen),learn

@pytest.mark.parametrize('kw', [{}, dict(base_lr=1e-2), dict(freeze_epochs=2), dict(freeze_epochs=0), dict(lr_mult=4), dict(pct_start=.5), dict(div=20.), dict(div_final=10.)])
def test_rates_of_fine_tune(dls, file, kw):
    "As fastai's: the head alone along a cycle that climbs to the end, then everything from 1:lr_mult"
    got,_ = tuned(dls, file, **kw)
    o = {**dict(base_lr=2e-3, freeze_epochs=1, lr_mult=100, pct_start=.3, div=5., div_final=1e5), **kw}
    n,f,b = len(dls.train),o['freeze_epochs'],o['base_lr']
    def cycle(peaks, n, div, pct): return [[combined_cos(pct, p/div, p, p/o['div_final'])(i/n) for p in peaks] for i in range(n)]
    want = cycle([b/10,b/10,b], n*f, 25., .99)+cycle([b/2/o['lr_mult'], b/2/o['lr_mult']**.5, b/2], 2*n, o['div'], o['pct_start'])
    np.testing.assert_allclose(got, want, rtol=1e-6)

def test_fine_tune_hands_on(dls, file):
    seen = []
    class Look(Callback):
        order = 99
        def before_batch(self): seen.append((self.opt.hypers[0]['wd'], round(self.opt.hypers[0]['mom'], 2), len(trains(self.model)))) if self.training else None
    learn = vision_learner(dls, tiny, pretrained=file)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, wd=.2, moms=(.7,.7,.7), cbs=Look())
    assert {o[:2] for o in seen}=={(.2,.7)} and sorted({o[2] for o in seen})==[len(params(learn.model))-len([k for k,_ in learn.model[0].named_parameters() if not is_norm(k)]), len(params(learn.model))]

def test_fine_tune_of_a_plain_learner(dls):
    "One group: nothing is frozen"
    learn,cb = Learner(dls, small(n_out=2)),Rates()
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, 1e-3, cbs=cb)
    assert np.array(cb.seen).shape[1]==1 and len(trains(learn.model))==len(params(learn.model))

# PyTorch's networks

def test_a_network_of_torch(dls, tmp_path):
    net = Net()
    learn = vision_learner(dls, net, metrics=accuracy)
    assert learn.model[0][0] is net.conv1 and trains(learn.model)=={'0.1.weight','0.1.bias','0.3.1.weight','0.3.1.bias', *(f'1.{k}' for k,_ in learn.model[1].named_parameters())}
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1)
        res = learn.lr_find(np.array([1e-6,1e-4]), np.array([1e-2,1.]), num_it=6, show_plot=False)
    assert len(res.finder.group_rates[0])==2 and np.isfinite(learn.history[-1]['valid_loss'])
    torch.save(learn.model.state_dict(), tmp_path/'w.pth')
    again = vision_learner(dls, Net, pretrained=tmp_path/'w.pth')
    assert again.model[0][0].weight.equal(learn.model[0][0].weight)
