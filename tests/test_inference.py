"Predictions: complete, in the order of the files, and without a trace"
import random,warnings,weakref

import matplotlib.pyplot as plt,numpy as np,pytest,torch,torch.nn.functional as F
from PIL import Image
from fastcore.all import L,first

from scratchai.core import *
from scratchai.data import *
from scratchai.block import *
from scratchai.crops import *
from scratchai.layers import *
from scratchai.losses import *
from scratchai.module import *
from scratchai.learner import *
from scratchai.recorder import *
from scratchai.tracker import *
from scratchai.training import ShortEpochCallback
from scratchai.precision import *
from scratchai.transform import *
from scratchai.inference import *

def net(n_out=2): return Sequential(AdaptivePool(), Flatten(), Linear(3, n_out))

@pytest.fixture
def fns(tmp_path):
    "Twenty pictures, each of another grey, in two folders"
    res = L()
    for i in range(20):
        f = tmp_path/('cat' if i%3 else 'dog')/f'{i:02}.png'
        f.parent.mkdir(exist_ok=True)
        Image.new('RGB', (20,12), (i*12,)*3).save(f)
        res.append(f)
    return res

def block_dls(fns, n_valid=7, **kwargs):
    b = DataBlock((ImageBlock,CategoryBlock), get_y=parent_label, item_tfms=Resize(8, method='squish'),
        splitter=lambda o: (list(range(n_valid, len(o))), list(range(n_valid))))
    return b.dataloaders(fns, **{'bs':4, 'num_workers':0, 'device':'cpu', **kwargs})

@pytest.fixture
def learn(fns): return Learner(block_dls(fns), net(), metrics=accuracy)

def own(learn, fns): # what a loop by hand gives
    with torch.no_grad(): return torch.cat([learn.model(b[0]) for b in learn.dls.test_dl(list(fns))]).softmax(1)

@pytest.mark.parametrize('n_workers', [0, 2])
def test_order_and_completeness(fns, n_workers):
    "Every file once and in its place: the training loader shuffles and leaves out its last batch"
    learn = Learner(block_dls(fns, num_workers=n_workers), net())
    preds,targs = learn.get_preds(0)
    assert torch.equal(preds, own(learn, fns[7:])) and not preds.requires_grad
    assert [learn.dls.vocab[y] for y in targs.tolist()]==fns[7:].map(parent_label)
    assert torch.equal(learn.get_preds()[0], own(learn, fns[:7]))
    assert torch.equal(learn.get_preds(dl=learn.dls.train)[0], preds)
    learn.dls.close()

def test_a_loader_in_the_middle_of_an_epoch_is_read_whole(learn):
    whole,it = learn.get_preds()[0],iter(learn.dls.valid)
    next(it)
    assert torch.equal(learn.get_preds()[0], whole)
    assert len(list(it))==1, 'the loop that was under way goes on'
    learn.dls.valid.load_state_dict({**learn.dls.valid.state_dict(), 'position':1})
    assert torch.equal(learn.get_preds()[0], whole) and learn.dls.valid.position==1

def test_reorder(learn, fns):
    "Without it, in the loader's order, and still complete"
    dl = learn.dls.train
    order = dl.order(dl.epoch)
    preds,targs = learn.get_preds(dl=dl, reorder=False)
    assert torch.equal(preds, own(learn, fns[7:])[order]) and order.tolist()!=sorted(order)

def test_a_bad_file_keeps_its_place(learn, fns):
    fns[2].write_text('no picture')
    dl = learn.dls.test_dl(list(fns[:7]), with_labels=True, skip_bad=True, bs=2)
    with pytest.warns(UserWarning, match='1 of 7 items were left out'):
        x,preds,targs,dec,losses = learn.get_preds(dl=dl, with_input=True, with_decoded=True, with_loss=True)
    good = [0,1,3,4,5,6]
    assert torch.equal(preds[good], own(learn, fns[L(good)])) and preds[2].isnan().all() and losses[2].isnan()
    assert targs[2]==dec[2]==-100 and len(x)==7 and x[2].isnan().all()
    with pytest.warns(UserWarning): assert len(learn.get_preds(dl=dl, reorder=False)[0])==6
    fns[0].write_text('no picture')
    with pytest.raises(LoaderError, match='Item 0 .*00.png'): learn.get_preds()
    dl = learn.dls.test_dl([fns[0],fns[2]], skip_bad=True)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match='no item could be read'): learn.get_preds(dl=dl)

def test_batches_as_a_list(learn, fns):
    "With targets and without, a single tensor, and what has no length"
    xb,yb = learn.dls.valid.one_batch()
    preds,targs = learn.get_preds(dl=[(xb,yb),(xb[:2],yb[:2])])
    assert len(preds)==6 and torch.equal(targs[4:], yb[:2])
    preds,targs = learn.get_preds(dl=[(xb,)])
    assert targs is None and torch.equal(preds, own(learn, fns[:4]))
    assert torch.equal(learn.get_preds(dl=[xb])[0], preds)
    with pytest.raises(TypeError, match='generator, without a length'): learn.get_preds(dl=(o for o in [(xb,yb)]))
    with pytest.raises(ValueError, match='no batches'): 
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            learn.get_preds(dl=[])

def test_the_parts(learn):
    "Inputs first, then predictions, targets, decisions, losses"
    parts = learn.get_preds(with_input=True, with_decoded=True, with_loss=True)
    x,preds,targs,dec,losses = parts
    assert [tuple(o.shape) for o in parts]==[(7,3,8,8),(7,2),(7,),(7,),(7,)]
    assert isinstance(x, TensorImage) and torch.equal(dec, preds.argmax(1))
    assert torch.allclose(losses, F.cross_entropy(preds.log(), targs.as_subclass(torch.Tensor), reduction='none'))
    assert [len(learn.get_preds(**{k:True})) for k in ('with_input','with_decoded','with_loss')]==[3,3,3]
    with pytest.raises(ValueError, match='`with_loss` needs targets'): learn.get_preds(dl=[x], with_loss=True)

class Own:
    "A loss of somebody's that knows what its predictions mean"
    reduction = 'mean'
    def __call__(self, p, y): return F.cross_entropy(p, y, reduction=self.reduction)
    def activation(self, x): return x*0+7
    def decodes(self, x): return x[:,0].long()

@pytest.mark.parametrize('loss,act', [(F.cross_entropy, lambda x: x.softmax(1)), (torch.nn.CrossEntropyLoss(), lambda x: x.softmax(1)),
    (LabelSmoothingCrossEntropy(), lambda x: x.softmax(1)), (Own(), lambda x: x*0+7), (lambda p,y,reduction='mean': p.sum(), lambda x: x)])
def test_the_loss_says_what_outputs_mean(learn, fns, loss, act):
    raw = learn.get_preds(act=lambda x: x)[0]
    learn.loss_func = loss
    preds,_,dec = learn.get_preds(with_decoded=True)
    assert torch.allclose(preds, act(raw))
    if isinstance(loss, Own): assert dec.tolist()==[7]*7

def test_losses_of_items(learn):
    "The loss is copied, not changed; one for each pixel becomes a mean; one that has no reduction says so"
    before = vars(learn.loss_func).copy()
    learn.get_preds(with_loss=True)
    assert vars(learn.loss_func)==before
    learn.loss_func = F.cross_entropy
    assert learn.get_preds(with_loss=True)[2].shape==(7,)
    seg = Learner(DataLoaders([], [], device='cpu'), Conv2d(3, 2, 1), CrossEntropyLossFlat(axis=1))
    y = torch.randint(2, (5,4,4))
    assert seg.get_preds(dl=[(torch.randn(5,3,4,4), y)], with_loss=True)[2].shape==(5,)
    want = learn.get_preds(with_loss=True)[2]
    for loss in (lambda p,y: F.cross_entropy(p, y), lambda *args, **kwargs: F.cross_entropy(*args, **kwargs)):
        learn.loss_func = loss # called with one item after the other
        assert torch.allclose(learn.get_preds(with_loss=True)[2], want)
    learn.loss_func = mse
    x,y = torch.rand(3,3,8,8),torch.rand(3,2)
    p,_,losses = learn.get_preds(dl=[(x,y)], with_loss=True)
    assert torch.allclose(losses, ((p-y)**2).mean(1)) and not losses.requires_grad
    learn.loss_func = lambda p,y,reduction='mean': p.sum()[None].expand(3)
    with pytest.raises(ValueError, match='3 numbers for a batch of 4'): learn.get_preds(with_loss=True)

def test_callbacks(learn):
    "Those of the learner and further ones see the events, `inner` leaves the former out; none may lose items"
    seen = []
    learn.add_cb(Callback(before_validate=lambda self: seen.append('own'), before_epoch=lambda self: seen.append('epoch')))
    more = Callback(before_validate=lambda self: seen.append('more'), after_pred=lambda self: seen.append('pred'))
    learn.get_preds(cbs=more)
    assert seen==['own','more','pred','pred'] and more.learn is None
    seen.clear()
    learn.get_preds(inner=True, cbs=more)
    assert seen==['more','pred','pred']
    whole = learn.get_preds()[0]
    learn.add_cb(ShortEpochCallback(0.1))
    assert torch.equal(learn.get_preds()[0], whole) and len(learn.cbs.filter(lambda o: isinstance(o, ShortEpochCallback)))==1
    def stop(self): raise CancelValidException
    with pytest.raises(RuntimeError, match='left out 7 of 7 items'): learn.get_preds(cbs=Callback(after_batch=stop))
    def skip(self): raise CancelBatchException
    with pytest.raises(RuntimeError, match='left out 7 of 7 items'): learn.get_preds(cbs=Callback(before_batch=skip))
    b = learn.dls.valid.one_batch()
    with pytest.raises(RuntimeError, match='left out 1 of 2 batches'):
        learn.get_preds(dl=[b,b], cbs=Callback(before_batch=lambda self: skip(self) if self.iter else None))

def test_predictions_inside_a_fit(learn):
    got = []
    def f(self):
        got.append(self.learn.get_preds()[0])
        got.append(self.learn.predict(self.dls.valid_ds.items[0])[0])
    with learn.no_logging(): learn.fit(2, 0.01, cbs=Callback(after_epoch=f))
    assert [getattr(o, 'shape', None) or o in ('cat','dog') for o in got]==[(7,2),True]*2
    assert len(learn.history)==2 and not torch.equal(got[0], got[2])

def test_no_trace(learn):
    "Generators, modes, gradients, hypers, metrics, record and the loaders' places are as they were"
    with learn.no_logging(): learn.fit(2, 0.01)
    learn.model.train()
    learn.model[0].eval()
    first(learn.model.parameters()).grad = torch.ones(2, 3)
    def state(): return (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
        [m.training for m in learn.model.modules()], [p.grad is None for p in learn.model.parameters()], learn.opt.hypers,
        learn.metrics[0].value, learn.final_record, learn.history, learn.n_epoch, learn.epoch, learn.train_iter, learn.pct_train,
        [o.state_dict() for o in learn.dls], learn.recorder.losses, list(learn.cbs), learn.loss_func, learn.logger)
    before = state()
    for i in (0,1): learn.get_preds(i, with_loss=True)
    learn.predict(learn.dls.valid_ds.items[0])
    learn.pred_batch()
    learn.show_results()
    with pytest.raises(ZeroDivisionError): learn.get_preds(act=lambda x: 1/0)
    assert str(state())==str(before)

def test_without_a_fit_and_without_callbacks(fns):
    "Nothing is needed but a model; one without callbacks is put into evaluation mode all the same"
    learn = Learner(block_dls(fns), Sequential(net(), Dropout(0.5)), default_cbs=False)
    assert torch.equal(learn.get_preds()[0], learn.get_preds()[0]) and learn.opt is None
    assert all(m.training for m in learn.model.modules())

def test_bars(learn, monkeypatch, capsys):
    "A bar, unless it is not wanted; none for a single item"
    shown = []
    class Bar:
        def __init__(self, *args, **kwargs): shown.append(1)
        def update(self, n): pass
        def on_iter_end(self): pass
    monkeypatch.setattr('scratchai.recorder._bars', lambda: (Bar,Bar))
    learn.get_preds()
    assert shown==[1]
    with learn.no_bar(): learn.get_preds()
    learn.predict(learn.dls.valid_ds.items[0])
    learn.pred_batch()
    assert shown==[1] and capsys.readouterr().out==''

def test_mixed_precision(learn):
    "float32 comes out, and the forward pass is itself again"
    plain = learn.get_preds()[0]
    preds = learn.to_bf16().get_preds()[0]
    assert preds.dtype==torch.float32 and torch.allclose(preds, plain, atol=.02) and 'forward' not in vars(learn.model)

def test_augmentation(fns):
    "A set named by its number is read as for validation; a loader that is given, as it is"
    class Shift(Transform):
        split_idx,random,order = 0,False,50
        def encodes(self, o:TensorImage): return o+1
    b = DataBlock((ImageBlock,CategoryBlock), get_y=parent_label, item_tfms=Resize(8), batch_tfms=Shift,
        splitter=lambda o: (list(range(7, len(o))), list(range(7))))
    learn = Learner(b.dataloaders(fns, bs=4, num_workers=0, device='cpu'), net())
    assert learn.get_preds(0, with_input=True)[0].max()<=1
    assert learn.get_preds(dl=learn.dls.train, with_input=True)[0].min()>=1

@pytest.fixture
def hand(pictures):
    dls = folder_dls(pictures(train_cat=6, train_dog=5, val_cat=3, val_dog=2), size=8, bs=4, n_workers=0, device='cpu')
    return Learner(dls, net(), metrics=accuracy)

def test_hand_made_loaders(hand):
    preds,targs = hand.get_preds(0)
    assert preds.shape==(11,2) and targs.tolist()==hand.dls.train_ds.y.tolist()
    fn = hand.dls.valid_ds.fns[4]
    for o in (fn, str(fn), fn.read_bytes(), Image.open(fn), np.array(Image.open(fn)), tensor(Image.open(fn))):
        name,i,probs = hand.predict(o)
        assert torch.allclose(probs, hand.get_preds()[0][4], atol=1e-6) and name==hand.dls.vocab[i]
    assert hand.predict(fn, with_input=True)[0].shape==(3,8,8)
    hand.show_results(max_n=2)
    assert hand.get_preds(1, with_decoded=True)[2].shape==(5,)

def test_predict(learn, fns):
    "What it takes, what it gives, and what it refuses"
    want = learn.get_preds()[0][3]
    for o in (fns[3], str(fns[3]), fns[3].read_bytes(), Image.open(fns[3]), np.array(Image.open(fns[3])), tensor(Image.open(fns[3]))):
        name,i,probs = learn.predict(o)
        assert torch.allclose(probs, want) and i==want.argmax() and name==learn.dls.vocab[i] and isinstance(name, str)
    x,*rest = learn.predict(fns[3], with_input=True)
    assert x.shape==(3,8,8) and len(rest)==3
    with pytest.raises(LoaderError, match='no picture that can be read'): learn.predict(b'abc')
    with pytest.raises(LoaderError, match='No such file.*nope'): learn.predict('nope.png')
    with pytest.raises(TypeError, match='cannot take other items: a list'):
        Learner(DataLoaders(DataLoader([(torch.zeros(3),0)], n_workers=0), [], device='cpu'), net()).predict(fns[0])

def test_kinds_of_targets(fns, tmp_path):
    "Several labels, points in pixels, a mask, a number"
    def dls(block, get_y): return DataBlock((ImageBlock,block), get_y=get_y, item_tfms=Resize((12,20), method='squish'),
        splitter=lambda o: (list(range(4, len(o))), list(range(4)))).dataloaders(fns, bs=4, num_workers=0, device='cpu')
    class Const(Module):
        def __init__(self, *out): self.out,self.w = torch.tensor(out),Parameter(torch.zeros(1))
        def forward(self, x): return self.out.expand(len(x), *self.out.shape)+self.w
    learn = Learner(dls(MultiCategoryBlock, lambda o: [parent_label(o),'pet']), Const(-9.,9.,9.))
    names,mask,probs = learn.predict(fns[0])
    assert names==['dog','pet'] and mask.tolist()==[False,True,True] and probs.shape==(3,)
    learn = Learner(dls(PointBlock, lambda o: [[1.,2.],[3.,4.]]), Const(0.,0.,.5,-.5))
    pts,_,raw = learn.predict(fns[0])
    assert pts.tolist()==[[10,6],[15,3]] and raw.tolist()==[0,0,.5,-.5] and isinstance(pts, TensorPoint)
    learn.show_results(max_n=2)
    Image.fromarray(np.eye(12, 20, dtype=np.uint8)).save(tmp_path/'mask.png')
    learn = Learner(dls(MaskBlock(['a','b']), lambda o: tmp_path/'mask.png'), Conv2d(3, 2, 1))
    mask,idx,probs = learn.predict(fns[0])
    assert isinstance(mask, TensorMask) and mask.shape==idx.shape==(12,20) and probs.shape==(2,12,20)
    learn.show_results(max_n=2)
    learn = Learner(dls(RegressionBlock, lambda o: 1.5), Const(.25))
    assert learn.predict(fns[0])[0]==[.25] and target_types(learn.dls.valid)==[torch.Tensor]

def test_decode_preds(learn):
    xb,yb = learn.dls.valid.one_batch()
    assert learn.dls.decode_preds(xb, yb).itemgot(1)==['dog','cat','cat','dog'] and len(learn.dls.decode_preds(xb, yb, 2))==2
    assert [len(o) for o in learn.dls.decode_preds(xb)]==[1]*4

def test_nothing_to_predict(learn):
    "A sentence, and what makes some"
    empty = learn.dls.test_dl([])
    learn.dls = DataLoaders(learn.dls.train, empty)
    for f in (learn.get_preds, learn.pred_batch, learn.show_results, lambda: learn.get_preds(dl=empty), lambda: learn.show_results(dl=[])):
        with pytest.raises(ValueError, match='the loader has no batches. `learn.dls.test_dl'): f()

def test_memory_is_what_is_returned(fns):
    "No batch, output or graph is kept: the inputs that are alive at once are those of a batch or two"
    seen,most = weakref.WeakSet(),[]
    class Wide(Module):
        def __init__(self): self.w = Parameter(torch.ones(1))
        def forward(self, x):
            seen.add(out := self.w*x)
            most.append(len(seen))
            return out.mean((2,3))
    preds,_ = Learner(block_dls(fns, bs=1), Wide()).get_preds(0)
    assert len(most)==13 and max(most)<=2 and preds.grad_fn is None and preds.untyped_storage().nbytes()==preds.nbytes

def test_pred_batch(learn):
    xb,yb = learn.dls.valid.one_batch()
    assert torch.equal(learn.pred_batch(), learn.get_preds()[0][:4])
    assert torch.equal(learn.pred_batch((xb,)), learn.pred_batch((xb,yb)))
    assert torch.equal(learn.pred_batch(ds_idx=0), learn.get_preds(0)[0][:4])

def drawn():
    axs = plt.gcf().axes
    return [o.get_title() for o in axs],axs,plt.gcf()

def test_show_results(learn, fns):
    "Targets and predictions; which set, how many, in which grid, whether the same again"
    with torch.no_grad(): learn.model[2].bias.copy_(tensor([99.,0.])) # always the cat
    learn.show_results(shuffle=False)
    titles,axs,_ = drawn()
    assert titles[:7]==['dog\ncat','cat\ncat','cat\ncat']*2+['dog\ncat']
    assert [o.title.get_color() for o in axs[:2]]==['firebrick','green']
    learn.show_results(0, shuffle=False, max_n=2)
    assert drawn()[0]==['cat\ncat','cat\ncat']
    learn.show_results(max_n=6, nrows=1, figsize=(7,2))
    _,axs,fig = drawn()
    assert len(axs)==6 and fig.get_size_inches().tolist()==[7,2]
    learn.show_results(max_n=6, ncols=2)
    assert drawn()[1][0].get_subplotspec().get_gridspec().get_geometry()==(3,2)
    def order(): # the greys of the pictures on the screen
        learn.show_results(0)
        return [round(float(o.images[0].get_array().mean()), 3) for o in drawn()[1] if o.images]
    assert order()!=order()
    learn.show_results(dl=learn.dls.test_dl(list(fns[:2])))
    assert drawn()[0]==['cat','cat']

def test_save_keeps_the_state_of_callbacks(learn, tmp_path):
    "The scale of the loss goes on where it was"
    learn.path = tmp_path
    learn.to_fp16(on_cpu=True, init_scale=64.)
    with learn.no_logging(): learn.fit(1, 1e-3)
    learn.mixed_precision.scaler.factor = 12.5
    for name in ('a','b.pth'):
        learn.save(name)
        new = Learner(learn.dls, net(), path=tmp_path).to_fp16(on_cpu=True)
        assert new.load(name).mixed_precision.scaler.factor==12.5
        assert Learner(learn.dls, net(), path=tmp_path).load(name).opt is not None
        new = Learner(learn.dls, net(), path=tmp_path).to_fp16(on_cpu=True)
        assert new.load(name, with_opt=False).mixed_precision.scaler.factor==2.**16

def test_further_dl(learn, hand, fns):
    "Batches of inputs only, for either kind of loaders"
    for o in (learn,hand): assert [[tuple(p.shape) for p in b] for b in further_dl(o.dls, list(fns[:6]))]==[[(4,3,8,8)],[(2,3,8,8)]]
