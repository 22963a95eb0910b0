"Interpretation: every argument, both kinds of loaders, hooks that are gone, and what is said of data that does not fit"
import gc,weakref

import matplotlib.pyplot as plt,numpy as np,pytest,torch
from PIL import Image
from fastcore.all import L
from sklearn.metrics import classification_report,confusion_matrix,precision_recall_fscore_support
from scratchai.block import *
from scratchai.core import *
from scratchai.crops import *
from scratchai.data import *
from scratchai.inference import *
from scratchai.interpret import *
from scratchai.layers import *
from scratchai.learner import *
from scratchai.loader import *
from scratchai.losses import *
from scratchai.mixup import MixUp
from scratchai.module import *
from scratchai.precision import *
from scratchai.transform import *

names = ['ant','bee','cow']
quick = dict(n_workers=0, device='cpu', seed=1)

@pytest.fixture
def path(pictures): return pictures(train_ant=4, train_bee=3, train_cow=3, valid_ant=3, valid_bee=3, valid_cow=2)

def net(n=3): return Sequential(ConvLayer(3, 4, stride=2), ConvLayer(4, 4, stride=2), AdaptivePool(), Flatten(), Linear(4, n))
def by_hand(path, **kwargs): return Learner(folder_dls(path, 16, 4, **{**quick, **kwargs}), net())
def by_block(path, y=CategoryBlock, get_y=parent_label, n=3, model=None, **kwargs):
    block = DataBlock((ImageBlock, y), get_items=get_image_files, get_y=get_y, splitter=GrandparentSplitter(),
        item_tfms=Resize(16, 'squish'), **kwargs)
    return Learner(block.dataloaders(path, bs=4, num_workers=0, device='cpu', seed=1), model or net(n))
both = pytest.mark.parametrize('make', [by_hand, by_block])

def given(targs, probs, vocab=names, **kwargs):
    "An interpretation of these targets and probabilities"
    preds,targs = tensor(probs).float(),tensor(targs)
    dls = DataLoaders([], [], vocab=vocab, device='cpu')
    return ClassificationInterpretation(Learner(dls, net(), cross_entropy), [], preds, targs, preds.argmax(1), -preds[range(len(targs)),targs].log(), **kwargs)

def sure(*guesses, p=.8, c=3): return [[p if i==g else (1-p)/(c-1) for i in range(c)] for g in guesses]
def axes(): return [o for o in plt.gcf().axes if o.images]
def titles(): return [o.get_title() for o in axes()]
def hooked(m): return any(getattr(o, '__hooks__', None) or getattr(o, '_forward_hooks', None) for o in m.modules())

# predictions

@both
@pytest.mark.parametrize('ds_idx', [0,1])
def test_from_learner(path, make, ds_idx):
    learn = make(path)
    interp = Interpretation.from_learner(learn, ds_idx)
    fns = L(get_image_files(path/('train','valid')[ds_idx]))
    preds,targs,decoded,losses = learn.get_preds(ds_idx, with_decoded=True, with_loss=True)
    assert torch.equal(interp.preds, preds) and torch.equal(interp.decoded, decoded) and len(targs)==len(fns)
    assert [names[i] for i in interp.targs]==fns.map(lambda o: o.parent.name)
    assert torch.allclose(interp.losses, cross_entropy(preds.log(), targs.long(), reduction='none'), atol=1e-5)
    assert interp.items(range(len(fns)))==fns

def test_training_set_is_not_augmented(path):
    def flip(b): return b[0].flip(-1),*b[1:]
    flip.split_idx = 0
    learn,calls = by_hand(path),[]
    learn.dls.train.after_batch = [*learn.dls.train.after_batch, flip]
    a,b = [Interpretation.from_learner(learn, **kw) for kw in (dict(ds_idx=0),dict(dl=learn.dls.train))]
    assert torch.equal(a.losses, b.losses)
    x = a[[0]][0]
    assert torch.equal(x[0], learn.dls.valid._after((learn.dls.train_ds[0][0][None],0))[0][0])
    assert learn.dls.train.shuffle and learn.dls.train.drop_last and learn.dls.train.split_idx==0

def test_act(path):
    learn = by_hand(path)
    a,b = [Interpretation.from_learner(learn, act=act) for act in (None,lambda o: o*10)]
    assert torch.allclose(a.preds.sum(1), torch.ones(8)) and not torch.allclose(b.preds.sum(1), torch.ones(8))
    assert torch.equal(a.losses, b.losses)

def test_dl(path):
    learn = by_block(path)
    fns = get_image_files(path/'train')[:3]
    interp = learn.interpret(dl=learn.dls.test_dl(fns, with_labels=True))
    assert len(interp.losses)==3 and interp.items([2,0])==[fns[2],fns[0]]
    with pytest.raises(ValueError, match='needs targets'): learn.interpret(dl=learn.dls.test_dl(fns))

def test_list_of_batches():
    learn = synth_learner(loss_func=MSELossFlat())
    interp = learn.interpret()
    assert type(interp) is Interpretation and len(interp.losses)==32
    x = torch.cat([o[0] for o in learn.dls.valid])
    assert torch.equal(interp[[20,3]][0], x[[20,3]])
    assert torch.equal(interp.items([17])[0][0], x[17])

def test_predicted_once(path):
    learn,calls = by_hand(path),[]
    learn.model.register_forward_hook(lambda *args: calls.append(1))
    interp = learn.interpret()
    n = len(calls)
    interp.top_losses(2)
    interp.confusion_matrix()
    interp.most_confused()
    interp.plot_top_losses(2)
    assert len(calls)==n

def test_inputs_are_not_kept(path):
    learn,seen = by_hand(path),[]
    learn.add_cb(Callback(after_batch=lambda self: seen.append(weakref.ref(self.xb[0]))))
    interp = learn.interpret()
    gc.collect()
    assert seen and not any(o() is not None for o in seen)
    a = interp[[1]][0]
    fn = interp.items([1])[0]
    Image.new('RGB', (40,30), 'white').save(fn)
    assert not torch.equal(interp[[1]][0], a)

def test_changes_nothing(path):
    learn = by_hand(path)
    learn.model.train()
    state = learn.dls.valid.state_dict(),torch.get_rng_state()
    learn.interpret().plot_top_losses(2)
    assert learn.dls.valid.state_dict()==state[0] and torch.equal(torch.get_rng_state(), state[1])

def test_workers_of_a_copy_end(path):
    from conftest import children,gone
    learn = by_hand(path, n_workers=1)
    before = children()
    learn.interpret(ds_idx=0)
    assert gone(set(children())-set(before))

def test_after_mixup(path):
    learn = by_block(path)
    learn.fit(1, cbs=MixUp())
    want = learn.interpret().losses
    learn.add_cb(MixUp())
    assert torch.equal(learn.interpret().losses, want)

def test_in_bf16(path):
    learn = by_block(path)
    want = learn.interpret().losses
    interp = learn.to_bf16().interpret()
    assert interp.preds.dtype==interp.losses.dtype==torch.float32 and torch.allclose(interp.losses, want, atol=.1)

# top losses

def test_top_losses():
    interp = given([0,1,2,0], sure(0,2,2,1))
    losses,idxs = interp.top_losses()
    assert idxs.tolist()==[1,3,0,2] and torch.equal(losses, interp.losses[idxs])
    assert interp.top_losses(2)[1].tolist()==[1,3] and interp.top_losses(9)[1].tolist()==[1,3,0,2]
    assert interp.top_losses(3, largest=False)[1].tolist()==[0,2,1]

@both
def test_top_losses_items(path, make):
    interp = make(path).interpret()
    losses,idxs,fns = interp.top_losses(3, items=True)
    assert fns==[get_image_files(path/'valid')[i] for i in idxs]

def test_bad_files_are_left_out(path):
    (get_image_files(path/'valid')[2]).write_bytes(b'no picture')
    learn = by_hand(path, skip_bad=True)
    with pytest.warns(UserWarning, match='left out'): interp = learn.interpret()
    idxs = interp.top_losses()[1].tolist()
    assert len(interp.losses)==8 and sorted(idxs)==[0,1,3,4,5,6,7]
    assert interp.confusion_matrix().sum()==7 and reliability(interp.preds, interp.targs)[2].sum()==7
    assert interp.items([3])[0]==get_image_files(path/'valid')[3]

def test_rows_of_a_frame(path):
    pd = pytest.importorskip('pandas')
    fns = get_image_files(path/'valid')
    df = pd.DataFrame(dict(fn=[str(o) for o in fns], label=[o.parent.name for o in fns]))
    dls = ImageDataLoaders.from_df(df, path='/', valid_pct=.5, seed=1, item_tfms=Resize(16), bs=4, num_workers=0, device='cpu')
    learn = Learner(dls, net())
    losses,idxs,rows = learn.interpret().top_losses(2, items=True)
    assert list(rows.label)==[dls.valid_ds.items.iloc[int(i)].label for i in idxs]
    learn.show_cam(rows)
    assert len(axes())==2
    learn.show_cam(rows.iloc[0])
    assert len(axes())==1

@both
def test_plot_top_losses(path, make):
    interp = make(path).interpret()
    losses,idxs = interp.top_losses(3)
    interp.plot_top_losses(3, nrows=1, figsize=(6,2))
    v,d,p = interp.names,interp.decoded,interp.preds
    want = [f'{v[interp.targs[i]]}\n{v[d[i]]}\n{p[i,d[i]]:.0%}, loss {l:.2f}' for l,i in zip(losses, idxs)]
    assert titles()==want and tuple(plt.gcf().get_size_inches())==(6,2)
    assert len({o.get_position().y0 for o in axes()})==1
    interp.plot_top_losses(3, ncols=1)
    assert len({o.get_position().x0 for o in axes()})==1
    interp.plot_top_losses([2,0])
    assert titles()==[want[2],want[0]]
    interp.plot_top_losses(range(1,3))
    assert titles()==want[1:]
    interp.plot_top_losses(1, largest=False)
    assert titles()[0].endswith(f'loss {interp.losses.min():.2f}')
    interp.plot_top_losses(len(interp.losses)+1)
    assert len(axes())==len(interp.losses)

def test_show_results(path):
    interp = by_block(path).interpret()
    interp.show_results([4], cmap='viridis')
    assert titles()[0].startswith('bee\n')

def test_getitem(path):
    interp = by_block(path).interpret()
    x,p,t,d,l = interp[tensor([5,0])]
    assert x.shape==(2,3,16,16) and torch.equal(p, interp.preds[[5,0]]) and l.tolist()==interp.losses[[5,0]].tolist()
    assert interp[3][0].shape==(1,3,16,16)

# classes

def test_confusion_matrix():
    interp = given([0,0,0,1,1], sure(0,1,1,1,0))
    assert interp.confusion_matrix().tolist()==[[1,2,0],[1,1,0],[0,0,0]]
    assert isinstance(interp.confusion_matrix(), np.ndarray)

def test_ignored_targets():
    interp = given([0,0,1], sure(0,1,1))
    interp.targs = tensor([0,-100,255])
    assert interp.confusion_matrix().tolist()==[[1,0,0],[0,0,0],[0,0,0]]

def test_most_confused():
    interp = given([0,0,0,1,1,2], sure(0,1,1,1,0,2))
    assert interp.most_confused()==[('ant','bee',2),('bee','ant',1)]
    assert interp.most_confused(min_val=2)==interp.most_confused(2)==[('ant','bee',2)]
    assert interp.most_confused(3)==interp.most_confused(3)==[]

def test_random_matrix():
    t,p = torch.randint(0, 3, (200,)),torch.rand(200, 3)
    interp = given(t, p)
    assert (interp.confusion_matrix()==confusion_matrix(t, p.argmax(1))).all()

@pytest.mark.parametrize('targs,guesses', [([0,0,1,2,2,1],[0,1,1,2,0,1]), ([0,0,0],[0,0,0]), ([0,1],[2,1])])
def test_classification_report(targs, guesses, capsys):
    interp = given(targs, sure(*guesses))
    interp.print_classification_report()
    with np.errstate(all='raise'): assert np.allclose(interp.scores(), np.stack(precision_recall_fscore_support(targs, guesses, labels=range(3), zero_division=0)[:3], 1))
    want = classification_report(targs, guesses, labels=range(3), target_names=names, zero_division=0)
    got = capsys.readouterr().out
    if len(set(targs)|set(guesses))==3: assert got.rstrip()==want.rstrip()
    else: assert got.splitlines()[:5]==want.splitlines()[:5] # it names no accuracy where a class is nowhere

def texts(): return [o.get_text() for o in plt.gca().texts]

def test_plot_confusion_matrix():
    interp = given([0,0,0,1,1], sure(0,1,1,1,0))
    interp.plot_confusion_matrix()
    ax = plt.gca()
    assert texts()==list('120110000') and ax.get_title()=='Confusion matrix' and ax.get_ylabel()=='Actual'
    assert [o.get_text() for o in ax.get_yticklabels()]==[o.get_text() for o in ax.get_xticklabels()]==names
    assert ax.images[0].cmap.name=='Blues'
    interp.plot_confusion_matrix(normalize=True, title='Shares', cmap='Reds', norm_dec=1, figsize=(2,3), dpi=50)
    ax = plt.gca()
    assert texts()==['0.3','0.7','0.0','0.5','0.5','0.0','0.0','0.0','0.0'] and ax.get_title()=='Shares'
    assert ax.images[0].cmap.name=='Reds' and tuple(ax.figure.get_size_inches())==(2,3) and ax.figure.dpi==50
    interp.plot_confusion_matrix(plot_txt=False)
    assert texts()==[]

def test_names_that_cannot_be_typeset():
    given([0,1], sure(0,1), vocab=['$a$_{','b\udcff','c']).plot_confusion_matrix()
    plt.gcf().canvas.draw()

def test_bools_are_classes():
    assert given([0,1], sure(0,1,c=2), vocab=[False,True]).most_confused()==[]
    assert given([0,1], sure(1,1,c=2), vocab=[False,True]).most_confused()==[(False,True,1)]

def test_without_vocab():
    batches = [(torch.randn(4,3,8,8),torch.tensor([0,1,2,1]))]
    interp = ClassificationInterpretation.from_learner(Learner(DataLoaders(batches, batches, device='cpu'), net(), cross_entropy))
    assert interp.vocab==[0,1,2] and interp.confusion_matrix().sum()==4
    interp.plot_top_losses(2)
    assert len(axes())==2

def test_other_classes_are_refused(path):
    learn = by_hand(path)
    fns = [o for o in get_image_files(path/'valid') if o.parent.name!='ant']
    dl = DataLoader(Dataset(fns, parent_label, 16), 4, n_workers=0, after_batch=learn.dls.valid.after_batch)
    with pytest.raises(ValueError, match='vocab of the learner'): learn.interpret(dl=dl).confusion_matrix()
    dl = DataLoader(Dataset(fns, parent_label, 16, vocab=learn.dls.vocab), 4, n_workers=0, after_batch=learn.dls.valid.after_batch)
    assert learn.interpret(dl=dl).confusion_matrix().sum(1).tolist()==[0,3,2]

def test_more_outputs_than_classes():
    interp = given([0,1], sure(0,3,c=4), vocab=names)
    with pytest.raises(ValueError, match='class 3, and there are 3 classes'): interp.confusion_matrix()
    assert given([0,1], sure(0,2,c=4), vocab=names).confusion_matrix().sum()==2

def test_several_labels(path):
    learn = by_block(path, MultiCategoryBlock, lambda o: [o.parent.name])
    interp = learn.interpret()
    interp.plot_top_losses(2)
    assert len(axes())==2 and '%' not in titles()[0]
    for f in (interp.confusion_matrix, interp.plot_confusion_matrix, interp.most_confused, interp.print_classification_report):
        with pytest.raises(TypeError, match='several labels'): f()
    with pytest.raises(ValueError, match='Probabilities'): interp.plot_reliability()

def test_points(path):
    class Two(Sequential): pass
    learn = by_block(path, PointBlock, lambda o: [[4.,5.]], n=2)
    interp = learn.interpret()
    assert type(interp) is Interpretation
    interp.plot_top_losses(2)
    assert len(axes())==4 and 'loss' in titles()[1]

# masks

def test_masks(path):
    for o in get_image_files(path): Image.fromarray(np.eye(16, dtype=np.uint8)).save(o.with_suffix('.png'))
    block = DataBlock((ImageBlock, MaskBlock(['off','on'])), get_items=lambda p: [o for o in get_image_files(p) if o.suffix!='.png'],
        get_y=lambda o: o.with_suffix('.png'), splitter=GrandparentSplitter(), item_tfms=Resize(16, 'squish'))
    model = Sequential(ConvLayer(3, 4), Conv2d(4, 2, 1))
    learn = Learner(block.dataloaders(path, bs=4, num_workers=0, device='cpu'), model)
    interp = learn.interpret()
    assert type(interp) is SegmentationInterpretation and interp.preds is interp.decoded and interp.decoded.shape==(8,16,16)
    probs = learn.get_preds()[0]
    assert torch.equal(interp.decoded, probs.argmax(1))
    cm = interp.confusion_matrix()
    assert cm.sum()==8*256 and cm.sum(1).tolist()==[8*240,8*16]
    interp.plot_top_losses(2, figsize=(4,5))
    assert len(axes())==4 and 'loss' in titles()[1]
    low = SegmentationInterpretation.from_learner(learn, act=lambda o: o.softmax(1)*tensor([1.,0.])[:,None,None])
    assert low.decoded.max()==0
    with pytest.raises(ValueError, match='Probabilities'): interp.plot_reliability()
    with pytest.raises(ValueError, match='for each item'): grad_cam(learn.model, learn.dls.one_batch()[0])

# where it looked

def test_cam_adds_up():
    m,x = net(),torch.randn(5,3,16,16)
    pred = m.eval()(x)
    for c in range(3):
        cam = class_activation_map(m, x, c)
        assert cam.shape==(5,4,4) and torch.allclose(cam.mean((1,2)) + m[-1].bias[c], pred[:,c], atol=1e-5)
        assert torch.allclose(grad_cam(m, x, c), cam.relu()/16, atol=1e-6)
    each = torch.tensor([0,1,2,1,0])
    assert torch.equal(class_activation_map(m, x, each)[1], class_activation_map(m, x, 1)[1])
    assert torch.equal(grad_cam(m, x), grad_cam(m, x, pred.argmax(1)))
    assert torch.equal(class_activation_map(m, x), class_activation_map(m, x, pred.argmax(1)))

def test_cam_without_bias():
    m = Sequential(ConvLayer(3, 4), AdaptivePool(), Flatten(), Linear(4, 3, bias=False))
    assert class_activation_map(m, torch.randn(2,3,8,8)).shape==(2,8,8)

def test_layer():
    m,x = net(),torch.randn(2,3,16,16)
    assert grad_cam(m, x, layer=m[0]).shape==(2,8,8)
    assert torch.equal(grad_cam(m, x, layer=m[1]), grad_cam(m, x))
    with pytest.raises(ValueError, match='use `grad_cam`'): class_activation_map(m, x, layer=m[0])
    with pytest.raises(ValueError, match='Linear puts out no maps'): grad_cam(m, x, layer=m[-1])

def test_grad_cam_against_hand():
    m,x = Sequential(ConvLayer(3, 4), AdaptivePool(2), Flatten(), Linear(16, 5), ReLU(), Linear(5, 3)),torch.randn(2,3,8,8)
    m.eval()
    A = m[0](x).detach().requires_grad_()
    out = A
    for o in list(m.children())[1:]: out = o(out)
    g, = torch.autograd.grad(out[:,1].sum(), A)
    want = (g.mean((2,3))[...,None,None]*A).sum(1).relu()
    assert torch.allclose(grad_cam(m, x, 1, layer=m[0]), want, atol=1e-6)

def test_torch_model():
    nn = torch.nn
    m,x = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),torch.randn(2,3,9,9)
    assert torch.allclose(grad_cam(m, x, 2), class_activation_map(m, x, 2).relu()/16, atol=1e-6)
    assert m.training and not hooked(m)

def test_frozen_body_and_training_state():
    m,x = net(),torch.randn(2,3,16,16)
    want = grad_cam(m, x)
    for o in list(m.parameters()): o.requires_grad_(False)
    m[0].eval()
    with torch.no_grad(): got = grad_cam(m, x)
    assert torch.equal(got, want) and not x.requires_grad
    assert m.training and m[1].training and not m[0].training
    assert all(o.grad is None for o in m.parameters())

class Breaks(Module):
    def forward(self, x): raise RuntimeError('broken')

@pytest.mark.parametrize('f', [grad_cam, class_activation_map])
def test_hooks_are_gone(f):
    m,x = net(),torch.randn(2,3,16,16)
    f(m, x)
    assert not hooked(m) and m.training
    m = Sequential(ConvLayer(3, 4), Breaks())
    with pytest.raises(RuntimeError, match='broken'): f(m, x)
    assert not hooked(m) and m.training

def test_several_inputs():
    class Sum(Module):
        def __init__(self): self.net = net()
        def forward(self, a, b): return self.net(a+b)
    m,a,b = Sum(),torch.randn(2,3,16,16),torch.randn(2,3,16,16)
    assert torch.allclose(grad_cam(m, (a,b)), grad_cam(m.net, a+b), atol=1e-6)
    assert torch.allclose(class_activation_map(m, (a,b)), class_activation_map(m.net, a+b), atol=1e-6)

@both
def test_show_cam(path, make):
    learn = make(path)
    fns = get_image_files(path/'valid')[:3]
    learn.show_cam(fns, nrows=1, figsize=(5,2))
    _,_,probs = zip(*[learn.predict(o) for o in fns])
    assert titles()==[f'{names[p.argmax()]}\n{p.max():.0%}' for p in probs]
    assert tuple(plt.gcf().get_size_inches())==(5,2) and len({o.get_position().y0 for o in axes()})==1
    pic,heat = [np.asarray(o.get_array()) for o in axes()[0].images]
    assert pic.shape==(16,16,3) and heat.shape==(16,16)
    learn.show_cam(fns, cls='cow', ncols=1)
    assert titles()==[f'cow\n{p[2]:.0%}' for p in probs] and len({o.get_position().x0 for o in axes()})==1
    a = axes()[0].images[1].get_array()
    learn.show_cam(fns[0], cls=2, func=class_activation_map, cmap='gray', alpha=.1)
    o, = axes()
    assert o.get_title()==f'cow\n{probs[0][2]:.0%}' and (o.images[1].cmap.name,o.images[1].get_alpha())==('gray',.1)
    assert np.allclose(np.maximum(o.images[1].get_array(), 0).max(), a.max()*16, atol=1e-4) or o.images[1].get_array().min()<0
    learn.show_cam(fns[0], layer=learn.model[0])
    assert axes()[0].images[1].get_array().shape==(16,16)
    with pytest.raises(ValueError, match="'dog' is no class"): learn.show_cam(fns[0], cls='dog')

def test_heat_over():
    m,x = net(),torch.randn(2,3,16,12)
    def large(o): return torch.nn.functional.interpolate(o[:,None], (16,12), mode='bilinear')[:,0].numpy()
    heat = heat_over(m, x)
    assert isinstance(heat, np.ndarray) and np.array_equal(heat, large(grad_cam(m, x))) and np.array_equal(heat_over(m, (x,)), heat)
    assert np.array_equal(heat_over(m, x, [1,2]), large(grad_cam(m, x, [1,2]))) and np.array_equal(heat_over(m, x, 0, m[0]), large(grad_cam(m, x, 0, m[0])))
    assert np.array_equal(heat_over(m, x, 1, func=class_activation_map), large(class_activation_map(m, x, 1)))

def test_show_cam_takes_pictures(path):
    learn = by_block(path)
    fn = get_image_files(path/'valid')[0]
    for o in (str(fn), Image.open(fn), fn.read_bytes(), np.asarray(Image.open(fn))):
        learn.show_cam(o)
        assert len(axes())==1

# calibration

def test_reliability():
    preds = tensor([[.95,.05],[.9,.1],[.3,.7],[.45,.55],[1.,0.]])
    conf,acc,n = reliability(preds, tensor([0,1,1,0,0]), n_bins=5)
    assert n.tolist()==[0,0,1,1,3] and torch.allclose(acc, tensor([0.,0.,0.,1.,2/3]))
    assert torch.allclose(conf, tensor([0,0,.55,.7,.95]))
    assert len(reliability(preds, tensor([0,1,1,0,0]))[0])==10
    assert reliability(preds, tensor([0,-100,1,0,0]), 5)[2].tolist()==[0,0,1,1,2]
    for p,t in ((preds, tensor([0,1])), (preds.long(), tensor([0]*5)), (preds[0], tensor([0,0]))):
        with pytest.raises(ValueError, match='Probabilities'): reliability(p, t)

def test_plot_reliability():
    interp = given([0,1,2,0], sure(0,1,2,1))
    interp.plot_reliability(n_bins=4, figsize=(3,2))
    ax = plt.gca()
    assert [o.get_height() for o in ax.patches]==[0,0,0,.75] and tuple(ax.figure.get_size_inches())==(3,2)
    assert ax.get_title()=='Calibration error 5.0%' and len(ax.collections[0].get_offsets())==1

def test_of_an_exported_learner(path):
    from scratchai.export import load_learner
    learn = by_block(path, model=simple_cnn(3))
    want,fns = learn.interpret(),get_image_files(path/'valid')
    learn.path = path
    again = load_learner(learn.export('m.safetensors'))
    interp = again.interpret(dl=again.dls.test_dl(fns, with_labels=True))
    assert torch.equal(interp.losses, want.losses) and (interp.confusion_matrix()==want.confusion_matrix()).all()
    losses,idxs,items = interp.top_losses(2, items=True)
    assert items==[fns[i] for i in idxs]
    interp.plot_top_losses(2)
    again.show_cam(items)
    assert len(axes())==2
