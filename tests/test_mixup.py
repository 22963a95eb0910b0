"Mixed pictures and losses: exact values, and nothing that is left behind; predictions from augmented copies"
import copy,warnings
from functools import partial

import pytest,torch,torch.nn.functional as F
from fastcore.test import test_close as close
from torch import nn,tensor
from scratchai.all import (BCEWithLogitsLossFlat,Callback,CancelBatchException,CancelEpochException,CancelFitException,CancelTrainException,
    CategoryBlock,CrossEntropyLossFlat,DataBlock,DataLoaders,FocalLossFlat,GrandparentSplitter,ImageBlock,ImageGetter,Learner,LabelSmoothingCrossEntropyFlat,
    MSELossFlat,Normalize,SGD,accuracy,doodles,imagenet_stats,parent_label,set_seed,simple_cnn)
from scratchai.augment import aug_transforms
from scratchai.mixup import *
import scratchai.schedule

g = torch.Generator().manual_seed(0)
xb,yb = torch.rand(12, 3, 8, 10, generator=g),torch.randint(0, 5, (12,), generator=g)

class Model(nn.Module):
    def __init__(self, c=5):
        super().__init__()
        self.lin = nn.Linear(240, c)
    def forward(self, x): return self.lin(x.flatten(1))

def learner(cbs=None, loss=None, y=yb, x=xb, c=5, **kwargs):
    set_seed(0)
    return Learner(DataLoaders([(x,y)]*2, [(x,y)], device='cpu'), Model(c), loss, lr=0., opt_func=SGD, cbs=cbs, **kwargs)

class Spy(Callback):
    "Keeps what the first training batch was, and its loss"
    order,run_valid = 90,False
    def before_fit(self): self.seen = None
    def after_loss(self):
        if not self.seen: self.seen = self.learn.xb[0],self.learn.yb[0],self.pred.detach(),self.loss_grad.detach()

def fitted(cb, loss=None, **kwargs):
    learn = learner([*([cb] if isinstance(cb, Callback) else cb), spy := Spy()], loss, **kwargs)
    with learn.no_logging(): learn.fit(1)
    return learn,*spy.seen

losses = [CrossEntropyLossFlat(), F.cross_entropy, nn.CrossEntropyLoss(), CrossEntropyLossFlat(weight=torch.arange(1.,6)),
    nn.CrossEntropyLoss(weight=torch.arange(1.,6)), partial(F.cross_entropy, weight=torch.arange(1.,6)), CrossEntropyLossFlat(reduction='sum'),
    partial(F.cross_entropy, reduction='sum'), LabelSmoothingCrossEntropyFlat(.2), FocalLossFlat(2.), CrossEntropyLossFlat(ignore_index=2)]

@pytest.mark.parametrize('loss', losses, ids=range(len(losses)))
@pytest.mark.parametrize('cls', [MixUp,CutMix])
def test_lambda_one_is_the_plain_loss(loss, cls):
    class One(cls):
        def draw(self, n): return torch.ones(n)
    learn,x,y,pred,got = fitted(One(), loss)
    close(got, loss(pred, yb), 1e-5), close(x, xb)
    assert y is yb and learn.loss_func is loss

@pytest.mark.parametrize('loss', losses[:-3], ids=range(len(losses[:-3])))
def test_mixup_is_both_losses(loss):
    cb = MixUp()
    learn,x,y,pred,got = fitted(cb, loss)
    lam,y1 = cb.lam,cb.yb1[0]
    set_seed(0)
    assert lam.shape==(12,) and lam.min()>=.5 and lam.max()<=1
    each = copy.copy(loss) if hasattr(loss, 'reduction') else partial(loss, reduction='none')
    if hasattr(each, 'reduction'): each.reduction = 'none'
    # the last batch's `lam` and `yb1`, of another batch than the first: so once more, by hand
    cb.learn = learn
    learn.__dict__.update(training=True, xb=(xb,), yb=(yb,))
    cb.draw = lambda n: torch.linspace(.05, .9, n)
    cb.before_batch()
    w = (getattr(loss, 'weight', None) if not hasattr(loss, 'kwargs') else loss.kwargs.get('weight'))
    if isinstance(loss, partial): w = loss.keywords.get('weight')
    total = (torch.lerp(each(pred, cb.yb1[0]), each(pred, yb), cb.lam)).sum()
    how = getattr(loss, 'reduction', getattr(loss, 'keywords', {}).get('reduction', 'mean'))
    want = total if how=='sum' else total/(12 if w is None else w[yb].sum())
    close(cb.train_loss(loss, pred, yb), want, 1e-5)
    lam = cb.lam[:,None,None,None]
    other = (learn.xb[0]-lam*xb)/(1-lam) # which items were blended in?
    at = [(o-xb).abs().flatten(1).mean(1).argmin().item() for o in other]
    close(learn.xb[0], torch.lerp(xb[at], xb, lam), 1e-4), close(cb.yb1[0], yb[at])

def test_reduction_none_and_targets_of_pixels():
    loss = CrossEntropyLossFlat(reduction='none')
    cb = MixUp()
    cb.lam,cb.yb1 = torch.linspace(.5, 1, 12),(yb.flip(0),)
    pred = torch.randn(12, 5, generator=g)
    close(cb.train_loss(loss, pred, yb), torch.lerp(loss(pred, yb.flip(0)), loss(pred, yb), cb.lam))
    pred,y = torch.randn(12, 5, 4, 4, generator=g),torch.randint(0, 5, (12,4,4), generator=g)
    cb.yb1 = (y.flip(0),)
    each = [F.cross_entropy(pred, o, reduction='none').mean((1,2)) for o in (y.flip(0),y)]
    for loss in (CrossEntropyLossFlat(axis=1), F.cross_entropy): close(cb.train_loss(loss, pred, y), torch.lerp(*each, cb.lam).mean(), 1e-5)

@pytest.mark.parametrize('cls', [MixUp,CutMix])
def test_the_loaders_batch_is_not_written_into(cls):
    x,y = xb.clone(),yb.clone()
    learn,seen,target,*_ = fitted(cls(5.), x=x, y=y)
    assert torch.equal(x, xb) and torch.equal(y, yb) and not torch.equal(seen, xb) and target is y

@pytest.mark.parametrize('cls', [MixUp,CutMix])
def test_targets_that_are_no_classes_are_blended(cls):
    y = (torch.rand(12, 5, generator=g)>.5).float()
    for loss in (BCEWithLogitsLossFlat(), F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss(), MSELossFlat()):
        learn,_,seen,pred,got = fitted(cb := cls(), loss, y=y)
        cb.lam,cb.yb1 = torch.full((12,), .7),(y.flip(0),)
        close(cb.train_loss(loss, pred, y), loss(pred, .7*y+.3*y.flip(0)), 1e-5)
        assert seen is y and learn.loss_func is loss

def test_cutmix_pastes_a_box_of_the_share_that_lambda_says():
    same = torch.arange(12.)[:,None,None,None].expand(12, 3, 8, 10).contiguous()
    for _ in range(20):
        learn,x,_,_,_ = fitted(cb := CutMix(), x=same)
        learn.__dict__.update(training=True, xb=(same,), yb=(yb,))
        cb.learn = learn
        cb.before_batch()
        changed = learn.xb[0]!=same
        some = changed.flatten(1).any(1)
        if some.any(): close(changed[some].float().mean((1,2,3)), 1-cb.lam[some], 1e-5)
    assert (same==torch.arange(12.)[:,None,None,None]).all() # the loader's batch

def test_alpha_says_how_much():
    def lam(cls, alpha): return cls(alpha).draw(4000)
    set_seed(0)
    for cls in (MixUp,CutMix,MixHandler):
        few,many = lam(cls, .1),lam(cls, 10.)
        assert ((few<.05) | (few>.95)).float().mean()>.6 and ((many>.2) & (many<.8)).float().mean()>.95
    assert (MixUp().alpha,CutMix().alpha,MixHandler().alpha,LabelSmoothing().eps)==(.4,1.,.5,.1)

@pytest.mark.parametrize('loss', losses[:8], ids=range(8))
def test_label_smoothing(loss):
    learn,_,y,pred,got = fitted(LabelSmoothing(.3), loss)
    w = loss.kwargs.get('weight') if hasattr(loss, 'kwargs') else getattr(loss, 'weight', getattr(loss, 'keywords', {}).get('weight'))
    how = getattr(loss, 'reduction', getattr(loss, 'keywords', {}).get('reduction', 'mean'))
    close(got, F.cross_entropy(pred, yb, weight=w, reduction=how, label_smoothing=.3), 1e-5)
    assert y is yb and learn.loss_func is loss
    assert fitted(LabelSmoothing(0.), loss)[-1]==pytest.approx(loss(pred, yb).item(), 1e-4)

def test_label_smoothing_of_several_labels_and_with_mixup():
    y = (torch.rand(12, 5, generator=g)>.5).float()
    *_,pred,got = fitted(LabelSmoothing(.2), BCEWithLogitsLossFlat(), y=y)
    close(got, F.binary_cross_entropy_with_logits(pred, y*.8+.1), 1e-5)
    class One(MixUp):
        def draw(self, n): return torch.ones(n)
    for cbs in ([LabelSmoothing(.2), One()], [One(), LabelSmoothing(.2)]):
        learn,_,_,pred,got = fitted(cbs, nn.CrossEntropyLoss())
        close(got, F.cross_entropy(pred, yb, label_smoothing=.2), 1e-5)
        assert type(learn.loss_func) is nn.CrossEntropyLoss

@pytest.mark.parametrize('at', ['after_pred','after_loss','after_step','after_batch','before_batch'])
@pytest.mark.parametrize('e', [CancelFitException,CancelEpochException,CancelTrainException,CancelBatchException,ValueError])
@pytest.mark.parametrize('cls', [MixUp,CutMix,LabelSmoothing])
def test_the_loss_is_back_whatever_happens(at, e, cls):
    learn = learner(metrics=accuracy)
    own = learn.loss_func
    class Bad(Callback):
        order,run_valid = 95,False
    setattr(Bad, at, lambda self: (_ for _ in ()).throw(e('x')))
    with learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: learn.fit(1, cbs=[cls(), Bad()])
        except (ValueError,CancelBatchException): pass # there is nothing to cancel after `after_batch`
    assert learn.loss_func is own and not learn.cbs.filter(lambda o: isinstance(o, LossCallback))

@pytest.mark.parametrize('cls', [MixUp,CutMix,LabelSmoothing])
def test_nothing_leaks(cls):
    bare,mixed = learner(metrics=accuracy),learner(cls(), metrics=accuracy)
    mixed.model.load_state_dict(bare.model.state_dict())
    own = mixed.loss_func
    with mixed.no_logging(): mixed.fit(2)
    assert list(mixed.final_record)[-2:]==list(bare.validate()) # the fit's own validation
    assert list(mixed.validate())==list(bare.validate())
    for a,b in zip(mixed.get_preds(with_loss=True), bare.get_preds(with_loss=True)): assert torch.equal(a, b)
    with mixed.no_logging(): mixed.lr_find(num_it=4, show_plot=False)
    assert mixed.loss_func is own and list(mixed.validate())==list(bare.validate())

def test_validation_in_the_midst_of_training_is_plain():
    found = []
    class Mid(Callback):
        order,run_valid = 95,False
        def after_loss(self): found.append((self.learn.validate()[0],self.learn.get_preds(with_loss=True)[-1].mean().item()))
    learn = learner([MixUp(5.), Mid()])
    with learn.no_logging(): learn.fit(1)
    want = F.cross_entropy(learn.model(xb), yb).item()
    close(tensor(found), torch.full((2,2), want), 1e-4)

def test_metrics_in_training_see_plain_targets():
    seen = []
    class Look(Callback):
        run_valid = False
        def after_batch(self): seen.append(self.y)
    learn = learner([MixUp(), Look()])
    with learn.no_logging(): learn.fit(1)
    assert all(o is yb for o in seen) and len(seen)==2

def test_several_inputs():
    class Two(Model):
        def forward(self, a, b): return super().forward(a+b)
    a,b = xb,xb.flip(-1).contiguous()
    dls = DataLoaders([(a,b,yb)], [(a,b,yb)], device='cpu')
    dls.n_inp = 2
    learn = Learner(dls, Two(), cbs=[cb := MixUp(), spy := Spy()], lr=0.)
    both = []
    learn.add_cb(Callback(after_pred=lambda self: both.append(self.learn.xb)))
    with learn.no_logging(): learn.fit(1)
    close(both[0][0], both[0][1].flip(-1), 1e-6)
    assert (both[0][0]-a).abs().max()>.05

def test_faults_in_a_sentence():
    with pytest.raises(ValueError, match='`alpha` is above 0, not 0'): MixUp(0)
    with pytest.raises(ValueError, match='Only one can mix the items of a batch, not MixUp and CutMix'): fitted([MixUp(), CutMix()])
    def own(pred, y): return F.cross_entropy(pred, y)
    with pytest.raises(TypeError, match='MixUp needs a loss with `reduction="none"`, for each item: '): fitted(MixUp(), own)
    with pytest.raises(TypeError, match='`LabelSmoothing` needs a loss with `label_smoothing`'): fitted(LabelSmoothing(), own)

# --- tta

@pytest.fixture(scope='module')
def learn():
    block = DataBlock((ImageBlock, CategoryBlock), get_items=ImageGetter(folders=['train','val']), get_y=parent_label,
        splitter=GrandparentSplitter(valid_name='val'), batch_tfms=[*aug_transforms(size=24, min_scale=.5), Normalize(*imagenet_stats)])
    dls = block.dataloaders(doodles(n_train=20, n_valid=10, size=40), bs=6, num_workers=0, seed=2, device='cpu')
    set_seed(0)
    return Learner(dls, simple_cnn(10), metrics=accuracy)

def test_tta_is_the_mean_in_the_order_of_the_files(learn):
    preds,targs = learn.tta()
    many,plain = learn.tta(beta=None)[0]
    close(preds, .75*many+.25*plain, 1e-6), close(plain, learn.get_preds()[0], 1e-6)
    assert torch.equal(targs, learn.get_preds()[1]) and preds.shape==(len(learn.dls.valid_ds),10) and not torch.allclose(many, plain, atol=1e-4)
    assert torch.equal(preds, learn.tta()[0]) # the loader's seed decides
    close(learn.tta(beta=1.)[0], plain, 1e-6), close(learn.tta(beta=0.)[0], many, 1e-6)

def test_tta_arguments(learn):
    one,four = learn.tta(n=1, beta=None)[0][0],learn.tta(n=4, beta=None)[0][0]
    assert not torch.allclose(one, four, atol=1e-4)
    top = learn.tta(n=2, use_max=True)[0]
    assert (top>=learn.get_preds()[0]).all() and (top>=one).all() and (top>learn.get_preds()[0]).any()
    a,b = learn.tta(ds_idx=0)
    assert len(a)==len(learn.dls.train_ds)==20 and torch.equal(b, learn.get_preds(ds_idx=0)[1])
    dl = learn.dls.test_dl(learn.dls.valid_ds.items[:3], with_labels=True)
    close(learn.tta(dl=dl)[0], learn.tta()[0][:3], 1e-4)
    bare = [f for f in learn.dls.valid.after_batch if type(f).__name__ not in ('LightingTfm',)]
    assert not torch.allclose(learn.tta(batch_tfms=bare, beta=0.)[0], learn.tta(beta=0.)[0], atol=1e-5)
    assert not torch.allclose(learn.tta(item_tfms=[*learn.dls.valid.after_item, lambda o: o], beta=0.)[0], learn.get_preds()[0], atol=1e-5)

def test_tta_leaves_loaders_and_learner_as_they_were(learn):
    state,cbs = learn.dls.train.state_dict(),list(learn.cbs)
    learn.tta(n=1)
    assert learn.dls.train.state_dict()==state and learn.dls.valid.split_idx==1 and list(learn.cbs)==cbs
    with pytest.raises(TypeError, match='`tta` needs a `DataLoader`, not a list'): learn.tta(dl=[(xb,yb)])

@pytest.mark.parametrize('cls', [MixUp,CutMix,LabelSmoothing])
def test_nothing_leaks_into_predict_and_interpretation(learn, cls):
    from scratchai.interpret import Interpretation
    fn = learn.dls.valid_ds.items[0]
    mixed = Learner(learn.dls, simple_cnn(10), metrics=accuracy, cbs=cls())
    with mixed.no_logging(): mixed.fit(1, lr=0.)
    mixed.model.load_state_dict(learn.model.state_dict())
    for a,b in zip(mixed.predict(fn)[1:], learn.predict(fn)[1:]): assert torch.equal(a, b)
    a,b = [Interpretation.from_learner(o) for o in (mixed,learn)]
    assert torch.equal(a.preds, b.preds) and torch.equal(a.losses, b.losses)
