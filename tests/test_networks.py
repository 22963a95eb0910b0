"Networks of `torch.nn`, as timm and torchvision write them, through everything a learner does"
import copy,importlib.util,sys
from functools import partial
from pathlib import Path
from urllib.error import URLError

import numpy as np,pytest,torch,torch.nn as nn
from PIL import Image
from fastcore.all import L,NS,noop

from scratchai.core import *
from scratchai.block import *
from scratchai.data import *
from scratchai.export import *
from scratchai.files import *
from scratchai.inside import *
from scratchai.inference import *
from scratchai.layers import BatchNorm,ReLU
from scratchai.learner import *
from scratchai.losses import *
from scratchai.module import *
from scratchai.optimizer import *
from scratchai.precision import *
from scratchai.recorder import *
from scratchai.resnet import *
from scratchai.schedule import *
from scratchai.transfer import *
import scratchai.tracker # adds `save` and `load`

# Written as timm's and torchvision's are: nested names, layers named after what they hold, shared and unsaved tensors

class LayerNorm2d(nn.LayerNorm):
    def forward(self, x): return super().forward(x.permute(0,2,3,1)).permute(0,3,1,2)

class DropPath(nn.Module):
    def __init__(self, p): super().__init__(); self.p = p
    def forward(self, x): return x*torch.empty(len(x),1,1,1, device=x.device).bernoulli_(1-self.p)/(1-self.p) if self.training else x

class Mlp(nn.Module):
    def __init__(self, n): super().__init__(); self.fc1,self.act,self.fc2 = nn.Linear(n, 2*n),nn.GELU(),nn.Linear(2*n, n)
    def forward(self, x): return self.fc2(self.act(self.fc1(x)))

class Block(nn.Module):
    def __init__(self, n, mlp):
        super().__init__()
        self.conv_dw,self.norm,self.mlp,self.drop_path = nn.Conv2d(n, n, 3, padding=1, groups=n),nn.LayerNorm(n),mlp,DropPath(.1)
        self.gamma = nn.Parameter(torch.full((n,), .5))
        self.register_buffer('steps', torch.tensor(0))
    def forward(self, x):
        if self.training: self.steps += 1
        return x + self.drop_path((self.gamma*self.mlp(self.norm(self.conv_dw(x).permute(0,2,3,1)))).permute(0,3,1,2))

class SelectAdaptivePool2d(nn.Module):
    def forward(self, x): return x.mean((2,3))

class NormMlpHead(nn.Module):
    def __init__(self, n, n_out): super().__init__(); self.global_pool,self.norm,self.fc = SelectAdaptivePool2d(),nn.LayerNorm(n),nn.Linear(n, n_out)
    def forward(self, x): return self.fc(self.norm(self.global_pool(x)))

class ConvNeXt(nn.Module):
    "timm's kind: `forward_features` and `forward_head`; both blocks share their linear layers"
    def __init__(self, num_classes=2, in_chans=3, n=8):
        super().__init__()
        mlp = Mlp(n)
        self.pretrained_cfg,self.num_features = dict(mean=(.5,.4,.3), std=(.2,.2,.1)),n
        self.stem = nn.Sequential(nn.Conv2d(in_chans, n, 4, 4), LayerNorm2d(n))
        self.stages = nn.Sequential(nn.Sequential(Block(n, mlp), Block(n, mlp)))
        self.norm_pre,self.head = nn.Identity(),NormMlpHead(n, num_classes)
        self.register_buffer('grid', torch.arange(3.), persistent=False)
    def forward_features(self, x): return self.norm_pre(self.stages(self.stem(x)))
    def forward_head(self, x): return self.head(x)
    def forward(self, x): return self.forward_head(self.forward_features(x))

class Conv2dNormActivation(nn.Sequential):
    def __init__(self, ni, nf, **kwargs): super().__init__(nn.Conv2d(ni, nf, 3, bias=False, padding=1, **kwargs), nn.BatchNorm2d(nf), nn.Hardswish(inplace=True))

class MobileNet(nn.Module):
    "torchvision's kind"
    def __init__(self, num_classes=2):
        super().__init__()
        self.features = nn.Sequential(Conv2dNormActivation(3, 8, stride=2), Conv2dNormActivation(8, 16, stride=2, groups=4))
        self.avgpool,self.classifier = nn.AdaptiveAvgPool2d(1),nn.Sequential(nn.Linear(16, 8), nn.Hardswish(), nn.Dropout(.2), nn.Linear(8, num_classes))
    def forward(self, x): return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))

class ViT(nn.Module):
    "A transformer for pictures of one size; without classes, `num_classes=0`, its features `(bs, n)`"
    def __init__(self, num_classes=2, size=32, n=16):
        super().__init__()
        self.size,self.patch_embed = size,nn.Conv2d(3, n, size//4, size//4)
        self.cls_token,self.pos_embed = nn.Parameter(torch.zeros(1,1,n)),nn.Parameter(torch.randn(1,17,n)*.02)
        self.blocks = nn.Sequential(nn.TransformerEncoderLayer(n, 2, 2*n, batch_first=True, norm_first=True))
        self.norm,self.head = nn.LayerNorm(n),nn.Linear(n, num_classes) if num_classes else nn.Identity()
    def forward(self, x):
        assert x.shape[-1]==self.size, f'Input width {x.shape[-1]} is not that of the model, {self.size}'
        x = self.patch_embed(x).flatten(2).mT
        return self.head(self.norm(self.blocks(torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed))[:,0])

def _real(lib, name, **kwargs):
    "A function that makes a network of timm or torchvision"
    def make():
        sys.path.insert(0, str(Path(__file__).parent.parent/'benchmarks'))
        try: import peers # a torchvision built for CUDA beside a torch for the CPU
        finally: sys.path.pop(0)
        if lib=='timm': return importlib.import_module(lib).create_model(name, **kwargs)
        return getattr(importlib.import_module('torchvision.models'), name)(**kwargs)
    make.__name__ = f'{lib}_{name}'
    return make

real = [('timm', 'resnet18', {}), ('timm', 'convnext_atto', {}), ('timm', 'vit_tiny_patch16_224', dict(img_size=32, depth=2)),
    ('torchvision', 'resnet18', {}), ('torchvision', 'mobilenet_v3_small', {})]
here = {o:importlib.util.find_spec(o) is not None for o in ('timm','torchvision')} # theirs too, where they are installed
nets = [ConvNeXt, MobileNet, ViT, *[_real(lib, k, num_classes=2, **kw) for lib,k,kw in real if here[lib]]]
every = pytest.mark.parametrize('make', nets, ids=lambda o: o.__name__)
small = pytest.mark.parametrize('make', nets[:3], ids=lambda o: o.__name__)

def halves(m):
    ps = list(m.parameters())
    return [ps[:len(ps)//2], ps[len(ps)//2:]]

def learner(make, cls=Learner, n=24, bs=8, **kwargs):
    set_seed(1)
    x,y = torch.randn(n,3,32,32),torch.arange(n)%2
    x += y[:,None,None,None]
    learn = cls(NS(train=list(zip(x.split(bs), y.split(bs))), valid=[(x[:bs],y[:bs])]), make(), lr=1e-3, **kwargs)
    learn.logger = noop
    return learn
def state(o): return {k:v.clone() for k,v in getattr(o, 'model', o).state_dict().items()}
def changed(a, b): return {k for k,v in b.items() if not v.equal(a[k])}

def label(o): return 'ab'[int(Path(o).stem)%4<2]
def odd(items): return range(0, len(items), 2),range(1, len(items), 2)
@pytest.fixture
def dls(tmp_path):
    for i in range(12): Image.effect_noise((40,32), 40+30*(i%4<2)).convert('RGB').save(tmp_path/f'{i}.png')
    return ImageDataLoaders.from_path_func(tmp_path, get_image_files(tmp_path, recurse=False), label, splitter=odd, size=32, bs=3,
        seed=1, num_workers=0, device='cpu')

# Training

@every
def test_it_trains_and_is_searched(make):
    learn = learner(make)
    before = state(learn)
    found = learn.lr_find(num_it=4, show_plot=False)
    assert len(found.finder.losses)>=3 and not changed(before, state(learn))
    learn.fit(2, 1e-3)
    names = {k for k,_ in learn.model.named_parameters()}
    assert names<=changed(before, state(learn)) and np.isfinite(learn.recorder.losses).all()

@every
def test_groups_are_frozen_and_have_rates(make):
    learn = learner(make, splitter=halves, opt_func=partial(SGD, mom=0.9))
    before,ids = state(learn),{id(p) for p in halves(learn.model)[0]}
    learn.freeze()
    learn.fit(1, 1e-2)
    norms = {id(p) for m in learn.model.modules() if isinstance(m, (nn.LayerNorm,nn.BatchNorm2d)) for p in m.parameters()}
    moved = changed(before, state(learn))
    for k,p in learn.model.named_parameters():
        if id(p) in ids: assert p.requires_grad==(id(p) in norms) and (p.requires_grad or k not in moved), k
    assert moved # normalisation layers go on training
    learn.unfreeze()
    learn.fit_one_cycle(1, slice(1e-5,1e-3))
    assert all(p.requires_grad for p in learn.model.parameters()) and len(learn.opt.hypers)==2
    np.testing.assert_allclose(learn.opt.hypers[1]['lr'], 100*learn.opt.hypers[0]['lr'], rtol=1e-5)

def test_blocks_named_after_their_norm():
    "`Conv2dNormActivation` holds a convolution, which is frozen and decayed as any other"
    m = MobileNet()
    norm,bias = norm_bias_params(m)
    assert {id(p) for p in norm}=={id(p) for o in m.modules() if isinstance(o, nn.BatchNorm2d) for p in o.parameters()}
    learn = learner(MobileNet, splitter=halves)
    learn.freeze()
    assert not learn.model.features[0][0].weight.requires_grad and learn.model.features[0][1].weight.requires_grad
    assert learn.opt.state[learn.model.features[0][0].weight].get('do_wd', True)
    assert not learn.opt.state[learn.model.features[0][1].weight].get('do_wd', True)
    assert len(norm_bias_params(ConvNeXt())[0])==2*4 # the stem's, both blocks' and the head's, without the head's linear layer

# Precision

@every
def test_16_bits_channels_last_and_compiled(make):
    kinds,learn = [],learner(make)
    conv = next(o for o in learn.model.modules() if isinstance(o, nn.Conv2d))
    handle = conv.register_forward_hook(lambda m, i, o: kinds.append(o.dtype))
    names = list(learn.model.state_dict())
    assert learn.to_bf16().to_channelslast() is learn
    learn.add_cb(Callback(after_pred=lambda self: kinds.append(self.pred.dtype)))
    learn.fit(1)
    assert set(kinds)=={torch.bfloat16,torch.float32} and all(p.dtype==torch.float32 for p in learn.model.parameters())
    assert conv.weight.is_contiguous(memory_format=torch.channels_last) and 'forward' not in vars(learn.model)
    handle.remove()
    assert learn.get_preds()[0].dtype==torch.float32 and list(learn.model.state_dict())==names

@pytest.mark.slow
@every
def test_compiled_it_is_the_same(make):
    torch._dynamo.reset()
    a,b,graphs = learner(make),learner(make),[]
    def backend(gm, inputs): return graphs.append(1) or gm
    b.compile(backend=backend)
    for o in (a, b):
        set_seed(3)
        o.fit(2, 1e-3)
    assert not changed(state(a), state(b)) and list(state(a))==list(state(b))
    assert len(graphs)==2 # training, evaluation

# Saving

@every
def test_it_is_saved_and_loaded(make, tmp_path):
    a,b = learner(make, path=tmp_path),learner(make, path=tmp_path)
    a.fit(1)
    a.save('m')
    assert changed(state(a), state(b))
    b.load('m')
    assert not changed(state(a), state(b))
    for o in (a, b):
        set_seed(3)
        o.fit(1) # with the state of the optimizer
    assert not changed(state(a), state(b))

@every
def test_it_is_exported(make, dls, tmp_path, capsys):
    learn = Learner(dls, make(), path=tmp_path)
    file = learn.export('m.safetensors')
    assert f'will need `model=` for this {type(learn.model).__name__}' in capsys.readouterr().out
    want = learn.predict(tmp_path/'1.png')
    set_seed(9)
    for model in (make(), learn.model):
        got = load_learner(file, model=model).predict(tmp_path/'1.png')
        assert got[0]==want[0] and got[2].equal(want[2])
    assert Predictor.load(file, model=make()).predict(tmp_path/'1.png')[2].equal(want[2])
    with pytest.raises(ValueError, match='give `model=`'): load_learner(file)
    with pytest.raises(ValueError, match='m.safetensors cannot be used'): load_learner(file, model=nn.Sequential(nn.Conv2d(3, 4, 3)))

# Looking inside

@every
def test_it_is_looked_into(make, dls):
    learn = Learner(dls, make())
    n = sum(p.numel() for p in learn.model.parameters())
    assert learn.summary().splitlines()[-1].split()==['total', f'{n:,}', f'{n:,}']
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=(stats:=ActivationStats()))
    assert len(stats.stats[0])==len(stats.layers)>2
    x = dls.valid.one_batch()[0]
    with hook_output(next(learn.model.children())) as h: learn.model(x)
    assert len(h.stored)==len(x) and in_channels(learn.model)==3 and total_params(learn.model)==(n,True)

# Transfer

def keeps(make): return dict(cut=noop, pool=False) if 'vit' in make.__name__.lower() else {}

@every
def test_its_body_gets_a_new_head(make, dls, tmp_path):
    net = make()
    learn = vision_learner(dls, net, metrics=accuracy, **keeps(make))
    own = {id(p) for p in net.parameters()}
    assert any(id(p) in own for p in learn.model[0].parameters()) and not any(id(p) in own for p in learn.model[1].parameters())
    before = state(learn)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        moved = {k.rpartition('.')[0] for k in changed(before, state(learn)) if k[0]=='0'}
        kinds = {type(m) for k,m in learn.model.named_modules() if k in moved and not isinstance(m, (nn.LayerNorm,nn.BatchNorm2d))}
        assert not {o.__name__ for o in kinds}-{'Block'} # whose counter of steps is no parameter
        learn.fine_tune(1)
    assert learn.get_preds()[0].shape==(6,2)
    torch.save(learn.model.state_dict(), tmp_path/'w.pth')
    again = vision_learner(dls, make(), pretrained=tmp_path/'w.pth', **keeps(make))
    assert not changed(state(learn.model[0]), state(again.model[0]))

@small
def test_a_function_that_makes_it(make, tmp_path):
    torch.save((net := make()).state_dict(), tmp_path/'w.pth')
    def conv(m): return next(o.weight for o in m.modules() if isinstance(o, nn.Conv2d))
    def arch(weights=None, progress=True): return copy.deepcopy(net) if weights=='DEFAULT' else make()
    for f,p in ((arch,True), (make,tmp_path/'w.pth'), (lambda pretrained=False: copy.deepcopy(net) if pretrained else make(),True)):
        body = create_body(f, pretrained=p, cut=keeps(make).get('cut'))
        assert conv(body).equal(conv(net))
    assert not conv(create_body(arch, pretrained=False, cut=keeps(make).get('cut'))).equal(conv(net))

def test_other_channels_of_a_network():
    w = (net := ConvNeXt()).stem[0].weight.detach().clone()
    body = create_body(net, n_in=1)
    assert body(torch.randn(2,1,32,32)).shape==(2,8,8,8) and net.stem[0].weight.equal(w.sum(1, keepdim=True))

def test_a_transformer_of_one_size():
    assert [num_features_model(Sequential(ViT(0, size=n))) for n in (32, 224, 384)]==[16]*3
    with pytest.raises(AssertionError, match='is not that of the model, 20'): num_features_model(Sequential(ViT(0, size=20)))
    with pytest.raises(ValueError, match='Nothing is left of the 4 children of ViT: say where to `cut`'): create_body(ViT())

def norms(dls): return [[(o.mean.flatten().tolist(), o.std.flatten().tolist()) for o in dl.after_batch if isinstance(o, Normalize)] for dl in dls.loaders]
def test_numbers_of_normalising(dls):
    "From `model_meta`, or what timm's network says of itself; otherwise ImageNet's"
    def found(net, **kwargs):
        new = DataLoaders(*[o.new() for o in dls.loaders], device='cpu')
        vision_learner(new, net, **kwargs)
        res = norms(new)
        assert res[0]==res[1]
        return [[np.round(o, 3).tolist() for o in p] for p in res[0]]
    net = ConvNeXt()
    assert found(net)==[[[.5,.4,.3],[.2,.2,.1]]] and found(net, normalize=False)==[]==found(net, pretrained=False)
    assert found(MobileNet())==[[list(o) for o in imagenet_stats]]
    model_meta[net] = dict(cut=None, split=default_split, stats=([.1]*3,[.9]*3))
    try: assert found(net)==[[[.1]*3,[.9]*3]]
    finally: del model_meta[net]

def test_weights_that_cannot_be_downloaded():
    def resnet9(weights=None): raise URLError('Name or service not known')
    with pytest.raises(ConnectionError, match='resnet9 could not download its weights: Name or service not known. If you have them in a file, give its path as `pretrained`'):
        create_body(resnet9)

@pytest.mark.skipif(not here['torchvision'], reason='there is no torchvision')
@pytest.mark.parametrize('name', ['resnet18','resnet50'])
def test_torchvisions_weights_give_torchvisions_outputs(name):
    theirs = _real('torchvision', name)().eval()
    ours,x = getattr(models, name)().eval(),torch.randn(2,3,64,64)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad(): torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
