"Callbacks that change a step: scratchai.training"
import math,warnings

import pytest,torch
from fastcore.all import L,NS,partial,test_close as close
from scratchai.core import *
from scratchai.layers import *
from scratchai.learner import *
from scratchai.module import *
from scratchai.optimizer import *
from scratchai.optimizers import OptimWrapper
from scratchai.recorder import *
from scratchai.training import *

def quick(**kwargs):
    set_seed(7)
    return synth_learner(**{'lr':0.05, **kwargs})
def run(learn, n=1, cbs=None):
    with learn.no_logging(): learn.fit(n, cbs=cbs)
    return learn

class Counts(Callback):
    "Batches seen in training and in validation"
    def before_fit(self): self.n = [0,0]
    def after_batch(self): self.n[not self.training] += 1

# Short epochs

@pytest.mark.parametrize('pct,short_valid,want', [(0.01,True,[1,1]), (0.5,True,[5,1]), (0.55,True,[6,2]), (1.,True,[10,2]), (0.1,False,[1,2])])
def test_a_part_of_each_epoch(pct, short_valid, want):
    run(quick(), 1, [counts:=Counts(), ShortEpochCallback(pct, short_valid)])
    assert counts.n==want
    assert len(run(quick(), 3, ShortEpochCallback(pct)).history)==3

def test_stop_after_n_batches():
    learn = run(quick(), 5, StopAfterNBatches(13))
    assert (learn.train_iter, len(learn.recorder.losses), len(learn.history))==(13,13,1)

# Clipping

ps = [torch.randn(s, requires_grad=True) for s in ((3,4),(5,),())]
def with_grads(scale):
    for i,p in enumerate(ps): p.grad = torch.full_like(p, scale*(i+1))
    return ps

@pytest.mark.parametrize('norm_type', [1.,2.,3.,math.inf])
@pytest.mark.parametrize('scale', [0.01,10.])
def test_clipping_agrees_with_torch(norm_type, scale):
    ref,refs = torch.nn.utils.clip_grad_norm_(with_grads(scale), 1., norm_type),[p.grad for p in ps]
    close(clip_grad_norm_(with_grads(scale), 1., norm_type), ref)
    for p,g in zip(ps, refs): close(p.grad, g)

def test_a_single_parameter_is_not_its_rows():
    p = with_grads(10.)[0]
    close(clip_grad_norm_(p, 1.), 10*12**0.5)
    close(p.grad.norm(), 1.)
    assert clip_grad_norm_([torch.ones(2)], 1.).item()==0. # no gradient
    assert clip_grad_norm_(with_grads(1.), 0.)>0 and all((p.grad==0).all() for p in ps)

@pytest.mark.parametrize('bad', [-1.,-0.01,math.nan])
def test_a_negative_norm_is_refused(bad):
    grads = [p.grad.clone() for p in with_grads(1.)]
    with pytest.raises(ValueError, match='0 or more'): clip_grad_norm_(ps, bad)
    with pytest.raises(ValueError, match='0 or more'): GradientClip(bad)
    assert all((p.grad==g).all() for p,g in zip(ps, grads))

def test_a_used_up_generator_is_told():
    gen = (p for p in with_grads(10.))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        clip_grad_norm_(gen, 1.)
    with pytest.warns(UserWarning, match='no parameters to clip'): clip_grad_norm_(gen, 1.)

class Moves(Callback):
    "How far each step moves the weights"
    def before_fit(self): self.seen = []
    def before_step(self): self.old = self.model.a.item(),self.model.b.item()
    def after_step(self): self.seen.append(math.dist(self.old, (self.model.a.item(),self.model.b.item())))

def test_a_clipped_step_is_short():
    run(quick(opt_func=SGD, lr=0.1), 1, [clip:=GradientClip(0.5), moves:=Moves()])
    assert max(moves.seen)<0.1*0.5+1e-6 and clip.norm.ndim==0
    run(quick(opt_func=SGD, lr=0.1), 1, [GradientClip(0.5, norm_type=math.inf), moves])
    assert 0.05 < max(moves.seen) < 0.05*2**0.5+1e-6

# Accumulation

def uneven(*sizes):
    "Batches of a line with these sizes"
    set_seed(1)
    x = torch.randn(sum(sizes), 1)
    return [(a,2*a+3+0.3*torch.randn_like(a)) for a in x.split(sizes)]
def joined(batches, *windows): return [tuple(torch.cat(o) for o in zip(*[batches[i] for i in w])) for w in windows]
def steps(batches, cbs=None, n=1):
    "Weights after `n` epochs, and how many steps it took"
    learn = quick(data=NS(train=batches, valid=batches[:1]), opt_func=SGD, lr=0.1)
    run(learn, n, [*L(cbs), moves:=Moves()])
    return round(learn.model.a.item(), 6),round(learn.model.b.item(), 6),len(moves.seen)
def same(a, b): close(a, b, 1e-5)

bs,six = uneven(4,4,2),uneven(*[2]*6)
@pytest.mark.parametrize('n_acc,windows', [(10,[[0,1,2]]), (8,[[0,1],[2]]), (5,[[0,1],[2]]), (4,[[0],[1],[2]]), (100,[[0,1,2]])])
@pytest.mark.parametrize('n', [1,3])
def test_accumulated_is_the_gradient_of_the_mean(n_acc, windows, n):
    same(steps(bs, GradientAccumulation(n_acc), n), steps(joined(bs, *windows), n=n))

def test_accumulation_asks_for_an_item():
    with pytest.raises(ValueError, match='at least one item'): GradientAccumulation(0)

def test_logged_losses_are_not_scaled():
    plain,acc = [run(quick(opt_func=SGD, lr=0.), 1, cbs) for cbs in (None,GradientAccumulation(64))]
    close(plain.recorder.losses, acc.recorder.losses)

def test_clipped_after_accumulation():
    same(steps(bs, [GradientClip(0.1), GradientAccumulation(10)]), steps(joined(bs, [0,1,2]), GradientClip(0.1)))

class Without(Callback):
    "Raise `exc` at the event `ev` of batch `i`, in one epoch or in all"
    toward_end = True
    def __init__(self, i, exc, ev='after_batch', epoch=None):
        self.i,self.exc,self.at = i,exc,epoch
        setattr(self, ev, self.fail)
    def fail(self):
        if self.training and self.iter==self.i and self.at in (None,self.epoch): raise self.exc

@pytest.mark.parametrize('exc,windows', [(CancelTrainException,[range(4),[4]]), (CancelEpochException,[range(4)]), (CancelFitException,[range(4)])])
def test_the_end_of_a_window_that_was_cut(exc, windows):
    "Six batches of two items in windows of eight, cut after the fifth"
    same(steps(six, [Without(4, exc), GradientAccumulation(8)]), steps(joined(six, *windows)))

def test_nothing_reaches_the_next_epoch():
    cut = Without(4, CancelEpochException, epoch=0)
    same(steps(six, [cut, GradientAccumulation(8)], n=2), steps(joined(six, range(4), range(4), [4,5])))
    same(steps(six, [ShortEpochCallback(5/6), GradientAccumulation(8)], n=2), steps(joined(six, range(4), [4], range(4), [4])))

def test_the_step_that_was_left_is_clipped_too():
    cbs = [Without(4, CancelTrainException), GradientAccumulation(8), GradientClip(0.1)]
    same(steps(six, cbs), steps(joined(six, range(4), [4]), GradientClip(0.1)))

def test_cancelled_parts_of_a_batch():
    acc = GradientAccumulation(8)
    same(steps(six, [Without(5, CancelBatchException, 'after_pred'), acc], n=2), steps(joined(six, range(4), [4], range(4), [4])))
    same(steps(six, [Without(1, CancelBackwardException, 'before_backward'), acc]), steps(joined(six, [0,2,3,4], [5])))
    same(steps(six, [Without(5, CancelBackwardException, 'before_backward'), acc]), steps(joined(six, range(4), [4])))
    assert steps(six[:1], [Without(0, CancelBackwardException, 'before_backward'), acc])[:2]==steps(six[:1], n=0)[:2]

def test_an_error_leaves_no_gradient():
    learn,acc = quick(data=NS(train=six, valid=six[:1]), opt_func=SGD),GradientAccumulation(8)
    with pytest.raises(OSError, match='disk'): run(learn, 1, [Without(4, OSError('disk')), acc])
    assert (acc.count, [p.grad for p in learn.model.parameters()])==(0, [None]*2)
    assert len(learn.validate(cbs=acc))==1

def test_batch_normalization_sees_the_small_batches():
    def bn(): return quick(model=Sequential(Linear(1,4), BatchNorm(4), Linear(4,1)), opt_func=SGD, data=NS(train=bs, valid=bs[:1]))
    def end(learn, cbs=None): return run(learn, 1, cbs).model[1].running_mean
    whole = bn()
    whole.dls = NS(train=joined(bs, [0,1,2]), valid=bs[:1])
    assert not torch.allclose(end(bn(), GradientAccumulation(10)), end(whole))

# Normalization that stands still

def bn_learner(**kwargs):
    set_seed(0)
    return quick(model=Sequential(Linear(1, 8), BatchNorm(8), ReLU(), Linear(8, 1)), **kwargs)
def drift(learn, cbs=None): return run(learn, 1, cbs).model[1].running_mean.abs().sum().item()

def test_frozen_layers_keep_their_statistics():
    def frozen():
        learn = bn_learner()
        learn.model[1].requires_grad_(False)
        return learn
    assert drift(frozen())>0 and drift(frozen(), BnFreeze)==0 and drift(bn_learner(), BnFreeze())>0
    class Looks(Callback):
        "A validation in the middle of the training"
        def after_step(self): self.learn.validate() if self.iter==3 else None
    assert drift(frozen(), [BnFreeze(),Looks()])==0

@pytest.mark.parametrize('train_bn', [True,False])
@pytest.mark.parametrize('opt_func', [SGD,partial(OptimWrapper, opt=torch.optim.SGD)])
def test_frozen_groups_keep_their_statistics(train_bn, opt_func):
    def groups(m): return [list(o.parameters()) for o in (m[0],m[1],m[3])]
    learn = bn_learner(splitter=groups, train_bn=train_bn, opt_func=opt_func)
    learn.freeze()
    assert drift(learn, BnFreeze())==0 and learn.model[1].weight.requires_grad==train_bn
    learn.unfreeze()
    assert drift(learn, BnFreeze())>0

def test_layers_of_torch():
    nn = torch.nn
    ref = nn.Sequential(nn.Linear(1,4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False), nn.Linear(4,1))
    ref[1].requires_grad_(False)
    run(quick(model=ref), 1, BnFreeze)
    assert (ref[1].running_mean.sum().item(), ref[2].running_mean.abs().sum().item()>0)==(0.,True)
    ref.train()
    set_bn_eval(ref)
    assert not ref[1].training and ref[2].training
    set_bn_eval(ref, use_eval=False)
    assert ref[1].training

# Recurrent models

class Echo(Module):
    def __init__(self): self.w,self.resets = Parameter(torch.ones(1)),0
    def reset(self): self.resets += 1
    def forward(self, x): return x*self.w,[x*self.w],[2*x*self.w]
x = torch.tensor([[[1.],[2.],[4.]]])
def echo(): return quick(data=NS(train=[(x,x)], valid=[(x,x)]), model=Echo(), lr=0.)

@pytest.mark.parametrize('alpha,beta,want', [(0.5,0.1,14.25), (0.5,0.,14.), (0.,0.1,0.25), (0.,0.,0.)])
def test_activation_regularization(alpha, beta, want):
    seen = []
    look = Callback(before_backward=lambda self: seen.append((self.loss.item(), self.loss_grad.item())))
    learn = run(echo(), 2, [*rnn_cbs(alpha, beta), look])
    close(seen[0], (0., want), 1e-5)
    assert learn.model.resets==2*2+1 and learn.history[0]['valid_loss']==0

def test_outputs_are_not_kept_after_an_error():
    rnn = RNNCallback()
    with pytest.raises(ZeroDivisionError): run(echo(), 1, [rnn, Callback(after_loss=lambda self: 1/0)])
    assert (rnn.raw_out, rnn.out)==(None,None)
    assert L(rnn_cbs()).map(str)==['ModelResetter','RNNCallback']

def test_what_recurrent_callbacks_need():
    with pytest.raises(AttributeError, match='no attribute `rnn`, nor a callback'): run(quick(), 1, RNNRegularizer(1.))
    with pytest.raises(AttributeError, match='RegModel.*reset'): run(quick(), 1, ModelResetter)
