"Events, callbacks and the loop: scratchai.learner"
import gc,pickle,warnings,weakref
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import pytest,torch,torch.nn as nn,torch.nn.functional as F
from fastcore.all import L,NS,noop,partial
from scratchai.core import *
from scratchai.data import DataLoaders
from scratchai.layers import *
from scratchai.learner import *
from scratchai.losses import *
from scratchai.module import *
from scratchai.optimizer import *

@pytest.fixture(autouse=True)
def plain(monkeypatch): monkeypatch.setattr(Learner, 'default_callbacks', L(TrainEvalCallback)) # other tests may have made it longer

def tracer(log): return Callback(**{o: lambda self, o=o: log.append(o) for o in event})
def learner(*cbs, **kwargs): return synth_learner(cbs=list(cbs), **kwargs)

# Events

batch = 'before_batch after_pred after_loss'.split()
step = 'before_backward after_backward before_step after_step'.split()

def test_the_order_of_events():
    log = []
    learn = learner(tracer(log), n_trn=1, n_val=1)
    assert log==['after_create']
    learn.fit(1)
    assert log[1:]==['before_fit','before_epoch','before_train',*batch,*step,'after_batch','after_train',
        'before_validate',*batch,'after_batch','after_validate','after_epoch','after_fit','cleanup_fit']
    assert len(list(event))==25 and event.after_loss=='after_loss'

@pytest.mark.parametrize('name', ['before_bacth','after_cancel_valid','begin_bacth','cleanup_fi'])
def test_misspelt_events_are_refused_when_the_class_is_made(name):
    with pytest.raises(AttributeError, match=f'`Typo.{name}` would never run'): type('Typo', (Callback,), {name: lambda self: None})
    with pytest.raises(AttributeError, match=f'`Callback.{name}` would never run'): Callback(**{name: noop})

def test_names_of_the_book():
    log = []
    class Older(Callback):
        def begin_fit(self): log.append('begin_fit')
    class Newer(Older): pass
    learner(Newer, Callback(begin_epoch=lambda self: log.append('begin_epoch'))).fit(1)
    assert log==['begin_fit','begin_epoch']

def test_a_callback_is_called_by_its_name_and_decides_itself():
    log = []
    cb = Callback(before_fit=lambda self: log.append(1))
    cb('before_fit')
    cb.run = False
    cb('before_fit')
    assert log==[1]

@pytest.mark.parametrize('train,valid,want', [(False,True,[False]*2), (True,False,[True]*3), (False,False,[])])
def test_run_train_and_run_valid(train, valid, want):
    class Odd(Callback):
        run_train,run_valid = train,valid
        def after_batch(self): seen.append(self.training)
        def after_epoch(self): seen.append('epoch')
    seen = []
    learner(Odd, n_trn=3, n_val=2).fit(1)
    assert seen==[*want, 'epoch'] # not an event of a batch

def test_run_is_put_back_at_the_end():
    class Off(Callback):
        def before_epoch(self): self.run = self.epoch!=0
        def after_batch(self): seen.append(self.epoch)
    seen = []
    learn = learner(Off)
    learn.fit(2)
    assert (seen, learn.off.run)==([], True) # nothing turned it on again before the end
    learn.off.run = False
    learn.remove_cb(Off).fit(1)

# Cancelling

def test_a_batch_that_is_cancelled_keeps_the_weights():
    class Skip(Callback):
        def before_batch(self):
            if self.training: raise CancelBatchException
    learn = learner(Skip)
    was = learn.model.a.item()
    learn.fit(1)
    assert learn.model.a.item()==was and learn.train_iter==10

@pytest.mark.parametrize('ev,exc', [('before_step',CancelStepException), ('after_loss',CancelBatchException), ('before_backward',CancelBackwardException)])
def test_backward_and_step_can_be_skipped(ev, exc):
    def stop(self): raise exc
    learn = learner(Callback(**{ev:stop}))
    was = learn.model.a.item()
    learn.fit(1)
    assert learn.model.a.item()==was
    assert all(p.grad is None for p in learn.model.parameters())

# Callbacks of a learner

def test_reading_falls_through_and_writing_warns():
    cb = Callback()
    cb.learn = NS(pred=21, training=True)
    assert cb.learner is cb.learn and cb.pred==21
    with pytest.warns(UserWarning, match=r'did you mean `self.learn.pred'): cb.pred = 3
    assert (cb.pred, cb.learn.pred)==(3,21)
    with pytest.raises(AttributeError, match='perd'): cb.perd
    with pytest.raises(AttributeError): Callback().pred
    with pytest.raises(AttributeError, match='no attribute `nonsense`'): learner().nonsense

def test_sort_by_run():
    class A(Callback): order = 10
    class B(Callback): run_after = A
    class C(Callback): toward_end,order = True,-99
    class D(Callback): run_before = [A,B]
    class E(Callback): run_after,run_before = B,A
    class Any(Callback): run_after = Callback # a class of which it is one itself
    class Name(Callback): run_after,order = 'A',-1
    def names(*cbs): return list(sort_by_run([o() for o in cbs]).map(str))
    assert names(C,B,A,D)==['D','A','B','C']
    assert names(Any,A)==['A','Any'] and names(Name,A)==['A','Name'] and names(B,B,A)==['A','B','B'] and names()==[]
    with pytest.raises(ValueError, match='wait for each other: B, A, E|wait for each other'): names(E,B,A,D)

def test_callbacks_come_and_go():
    class A(Callback): pass
    class B(Callback): pass
    learn,a = learner(),A()
    assert learn.add_cb(a).add_cb(a).add_cbs([B,B()]) is learn
    assert list(learn.cbs.map(str))==['TrainEvalCallback','A','B','B']
    assert learn.remove_cb(B).remove_cbs([a]) is learn and a.learn is None
    assert list(learn.cbs.map(str))==['TrainEvalCallback']
    assert learn.train_eval is learn.cbs[0] and learn.ordered_cbs('before_fit')==learn.cbs and not learn.ordered_cbs('after_step')
    for bad in (print,'Recorder'):
        with pytest.raises(TypeError, match='is no callback'): learn.add_cb(bad)

def test_added_and_removed_for_a_block():
    class A(Callback): pass
    mine,other = A(),A()
    learn = learner(mine, default_cbs=False)
    with learn.added_cbs([A, mine, other]): assert len(learn.cbs)==3
    assert learn.cbs==[mine] and mine.learn is learn and other.learn is None
    with learn.added_cbs(other), learn.removed_cbs(mine): assert learn.cbs==[other]
    assert learn.cbs==[mine]
    with suppress(ZeroDivisionError), learn.added_cbs(A), learn.removed_cbs(mine): 1/0
    assert learn.cbs==[mine] and mine.learn is learn

def test_temporary_callbacks_are_gone_after_an_error():
    class Fails(Callback):
        def after_loss(self): raise ValueError('too bad')
    learn = learner()
    with pytest.raises(ValueError): learn.fit(1, cbs=[Fails, Callback()])
    with pytest.raises(TypeError, match='is no callback'): learn.fit(1, cbs=[Callback(), 'Recorder'])
    assert list(learn.cbs.map(str))==['TrainEvalCallback'] and not learn.busy

def test_a_callback_removed_in_the_middle_of_an_event_is_not_called():
    class Removes(Callback):
        order = -1
        def after_batch(self): self.learn.remove_cb(Removed)
    class Removed(Callback):
        def after_batch(self): seen.append(self.iter)
    seen = []
    learner(Removed, Removes).fit(1)
    assert seen==[]

def test_methods_and_order_may_change_later():
    learn,log = learner(default_cbs=False),[]
    a,b = [Callback(before_fit=lambda self, i=i: log.append(i)) for i in range(2)]
    learn.add_cbs([a,b])
    a.order = 20
    learn.fit(0)
    b.before_fit = lambda: log.append('new')
    learn.fit(0)
    assert log==[1,0,'new',0]

def test_callbacks_of_two_learners_act_on_the_one_that_runs():
    seen,cb = [],Callback(before_fit=lambda self: seen.append(self.model))
    one,two = [synth_learner(cbs=cb, default_cbs=False) for _ in range(2)]
    for o in (one,two,one): o.fit(1)
    assert [m is one.model for m in seen]==[True,False,True]

def test_a_learner_does_one_thing_at_a_time():
    class Inside(Callback):
        def after_epoch(self):
            other = Learner(self.dls, self.model, mse, SGD, default_cbs=False)
            other.fit(1)
            self.learn.fit(1)
    learn = learner(Inside)
    with pytest.raises(RuntimeError, match='is at work'): learn.fit(1)
    learn.remove_cb(Inside).fit(1)

# Clean-up

def test_every_clean_up_runs_once():
    done = []
    def fail(self): raise ZeroDivisionError
    learn = synth_learner(default_cbs=False, cbs=[Callback(cleanup_fit=fail), Callback(cleanup_fit=lambda self: done.append(1))])
    with pytest.raises(ZeroDivisionError): learn.fit(1)
    assert (done, learn.busy)==([1], False)
    class First(Callback):
        order = -100
        def before_fit(self): raise ValueError('first')
    with pytest.raises(ValueError, match='first'): learner(First).fit(1) # the others clean up what they have not begun

@pytest.mark.parametrize('exc', [ValueError,KeyboardInterrupt,CancelFitException])
def test_nothing_is_kept_after_an_exception(exc):
    refs = []
    class Fails(Callback):
        def after_pred(self): refs.append(weakref.ref(self.pred))
        def after_loss(self):
            if self.iter==3: raise exc
    learn = learner()
    with suppress(BaseException): learn.fit(1, cbs=Fails)
    gc.collect()
    assert {r() for r in refs}=={None}
    assert (learn.xb, learn.yb, learn.pred, learn.loss, learn.loss_grad, learn.dl, learn.training, learn.busy)==((),(),None,None,None,None,False,False)
    assert torch.is_grad_enabled()
    learn.fit(1)
    assert learn.train_iter==10

def test_validation_builds_no_graph():
    graphs = []
    learner(Callback(after_loss=lambda self: graphs.append((self.training, self.loss_grad.requires_grad, self.pred.grad_fn is None)))).fit(1)
    assert set(graphs)=={(True,True,False), (False,False,True)}

# What `fit` does

def test_counts_and_modes():
    seen = []
    cb = Callback(after_batch=lambda self: seen.append((self.training, self.model.training, self.train_iter, self.pct_train)))
    learner(cb, n_trn=2, n_val=1).fit(2)
    assert seen==[(True,True,1,.25),(True,True,2,.5),(False,False,2,.5),(True,True,3,.75),(True,True,4,1.),(False,False,4,1.)]

def test_an_attribute_that_hides_the_learners_is_warned_of():
    cb = Callback(after_epoch=lambda self: self.pred*2)
    cb.learn = NS(pred=21, training=True)
    assert cb.after_epoch()==42
    with pytest.warns(UserWarning, match=r"`self.pred` hides the learner's in `Callback`; did you mean `self.learn.pred = …`"): cb.pred = 3
    assert (cb.pred,cb.learn.pred)==(3,21)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        cb.pred,cb.other = 4,5

def test_start_epoch():
    seen = []
    learn = learner(Callback(before_train=lambda self: seen.append((self.epoch, self.pct_train))))
    learn.fit(4, start_epoch=2)
    assert seen==[(2,.5),(3,.75)]
    learn.fit(4, start_epoch=4)
    for start in (5,-1):
        with pytest.raises(ValueError, match='from 0 to `n_epoch`'): learn.fit(2, start_epoch=start)

def test_rates_decay_and_a_new_optimizer():
    learn = learner()
    learn.fit(0, lr=0.5, wd=0.1)
    assert (learn.opt.hypers[0]['lr'], learn.opt.hypers[0]['wd'])==(0.5,0.1)
    learn.fit(0)
    assert (learn.opt.hypers[0]['lr'], learn.opt.hypers[0]['wd'])==(1e-3,0.1)
    old = learn.opt
    learn.fit(0, reset_opt=True)
    assert learn.opt is not old
    for kw,k,v in ((dict(wd=0.3),'wd',0.3), (dict(opt_func=partial(SGD, lr=0.7)),'lr',0.7)):
        learn = learner(**kw)
        learn.fit(0)
        assert learn.opt.hypers[0][k]==v
    with pytest.raises(TypeError, match='wrap it with `OptimWrapper`'): learner(opt_func=lambda ps,lr: torch.optim.SGD(ps, lr)).fit(1)

def test_gradients_left_behind_are_not_part_of_the_first_step():
    a,b = [synth_learner(data=dls, model=m, default_cbs=False) for dls in [synth_dls()] for m in [RegModel()] for m in (m, deepcopy(m))]
    a.model.a.grad = torch.ones(1)*100
    for o in (a,b): o.fit(1)
    assert a.model.a.item()==b.model.a.item()

def test_flags_of_biases_and_normalization():
    model = nn.Sequential(nn.Linear(1,2), nn.BatchNorm1d(2), nn.Linear(2,1))
    learn = learner(model=model)
    learn.create_opt()
    assert [learn.opt.state[p].get('do_wd') for p in model.parameters()]==[None,False,False,False,None,False]
    assert [learn.opt.state[p].get('force_train') for p in model.parameters()]==[None,None,True,True,None,None]
    learn = learner(model=model, wd_bn_bias=True, train_bn=False)
    learn.create_opt()
    assert [len(learn.opt.state[p]) for p in model.parameters()]==[0]*6
    learn = learner(model=Sequential(ConvLayer(3,4), Flatten(), Linear(4,2)))
    learn.create_opt()
    assert [o.get('do_wd') for o in learn.opt.state.values() if o]==[False]*3
    m = nn.Linear(2,3)
    m.bias.requires_grad_(False)
    assert len(trainable_params(m))==1

def test_freezing():
    model = nn.Sequential(nn.Linear(1,2), nn.Linear(2,2), nn.Linear(2,1))
    learn = learner(model=model, splitter=lambda m: [list(o.parameters()) for o in m])
    def wants(): return [p.requires_grad for p in model.parameters()]
    learn.freeze()
    assert wants()==[False]*4+[True]*2
    learn.freeze_to(1)
    assert wants()==[False]*2+[True]*4
    was = [p.clone() for p in model.parameters()]
    learn.fit(1, lr=0.1)
    assert [torch.equal(p,q) for p,q in zip(model.parameters(), was)]==[True]*2+[False]*4
    learn.unfreeze()
    assert all(wants())

def test_several_inputs_odd_batches_and_sets():
    class Sum(nn.Linear):
        def forward(self, a, b): return super().forward(a+b)
    x = torch.randn(9, 1)
    data = [(o,o,o) for o in (x[:8],x[8:])] # the last batch has one item
    seen = []
    look = Callback(after_batch=lambda self: seen.append((len(self.xb), len(self.yb), len(self.y), type(self.x))))
    Learner(NS(train=data, valid=None), Sum(1,1), mse, lr=0.1, cbs=look).fit(1)
    assert seen==[(2,1,8,tuple),(2,1,1,tuple)]
    class Loss2:
        def __call__(self, pred, a, b): return mse(pred, a+b)
    seen.clear()
    Learner(NS(train=data, valid=None, n_inp=1), nn.Linear(1,1), Loss2(), cbs=Callback(after_batch=lambda self: seen.append((len(self.xb), len(self.yb))))).fit(1)
    assert seen==[(1,2)]*2
    for b in ((x,), {'x':x}, x): # no targets: no loss, no step
        learn = learner(Callback(after_batch=lambda self: seen.append(self.loss)), data=NS(train=[b], valid=[]), model=type('Any', (RegModel,), dict(forward=lambda self, o: o))())
        learn.fit(1)
        assert seen[-1] is None
    for kw in (dict(n_val=0),dict(n_trn=0)): learner(**kw).fit(1)

def test_loss_path_and_device_of_the_data():
    assert Learner(NS(train=[], valid=[], loss_func=mse), RegModel()).loss_func is mse
    assert Learner(NS(train=[], valid=[]), RegModel()).loss_func is cross_entropy
    assert Learner(NS(train=[], valid=[], path='/tmp/abc'), RegModel()).path==Path('/tmp/abc')
    moved = []
    class Moves(RegModel):
        def to(self, dev): moved.append(dev)
    dls = synth_dls()
    dls.device = torch.device('cpu')
    synth_learner(data=dls, model=Moves()).fit(1)
    assert moved==[torch.device('cpu')]
    with torch.device('meta'): far = RegModel()
    seen = []
    class Stop(Callback): # batches follow the model
        def after_pred(self):
            seen.append((self.pred.device.type, self.x.device.type, self.y.device.type))
            raise CancelFitException
    learner(Stop, model=far, data=NS(train=dls.train, valid=[])).fit(1)
    assert seen==[('meta',)*3]

def test_our_problem():
    dls = synth_dls()
    assert isinstance(dls, DataLoaders) and dls.device==torch.device('cpu') and dls.one_batch() is dls.train[0]
    assert (len(dls.train), len(dls.valid), dls.train[0][0].shape)==(10,2,(16,1))
    x,y = synth_dls(a=5., b=-1., bs=4000, n_trn=1, n_val=3).train[0]
    assert abs((x*y).mean()-5)<.5 and abs(y.mean()+1)<.5
    learn = learner(lr=0.02)
    learn.fit(5)
    assert abs(learn.model.b.item()-3)<.3

# Copies

def test_a_learner_can_be_copied_and_pickled():
    old = learner(Callback(after_epoch=noop))
    old.fit(1)
    twins = deepcopy(old),pickle.loads(pickle.dumps(old))
    for o in (old,*twins): o.fit(1)
    for o in twins:
        assert o.model.a.item()==old.model.a.item() and o.model.a is not old.model.a
        assert o.callback.learn is o and o.callback.after_epoch.args[0] is o.callback
    with pytest.raises(Exception, match='lambda'): pickle.dumps(learner(Callback(after_epoch=lambda self: None)))

# Agreement

@pytest.mark.parametrize('bn', [False,True])
@pytest.mark.parametrize('mom,wd', [(0.,0.), (0.9,0.), (0.9,0.01)])
@pytest.mark.parametrize('ours,theirs,classes', [(cross_entropy,F.cross_entropy,True), (mse,F.mse_loss,False)])
def test_weights_are_those_of_a_bare_loop_in_torch(bn, mom, wd, ours, theirs, classes):
    model = nn.Sequential(nn.Linear(4,16), *[nn.BatchNorm1d(16)]*bn, nn.ReLU(), nn.Linear(16,3))
    data = [(torch.randn(32,4), torch.randint(3,(32,)) if classes else torch.randn(32,3)) for _ in range(10)]
    twin = deepcopy(model)
    opt = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=mom, weight_decay=wd)
    for _ in range(5):
        for x,y in data:
            theirs(twin(x), y).backward()
            opt.step()
            opt.zero_grad()
    Learner(NS(train=data, valid=data[:1]), model, ours, partial(SGD, mom=mom, wd=wd, decouple_wd=False), lr=0.1, wd_bn_bias=True).fit(5)
    assert max((a-b).abs().max().item() for a,b in zip(model.parameters(), twin.parameters()))<1e-6


class Holds(nn.Module):
    def __init__(self):
        super().__init__()
        self.ours,self.theirs = RegModel(),nn.Linear(1,1)
    def forward(self, x): return self.theirs(self.ours(x))

def test_a_torch_module_that_holds_ours_is_refused():
    "PyTorch would not see our parameters, and so not train them"
    with pytest.raises(TypeError, match='`ours` of Holds'): synth_learner(model=Holds()).fit(1)


@pytest.mark.parametrize('loss', [F.mse_loss, nn.MSELoss, nn.MSELoss(), mse])
def test_a_loss_is_a_function_a_module_or_a_class(loss):
    set_seed(0)
    learn = synth_learner(loss_func=loss)
    learn.fit(1)
    set_seed(0)
    ref = synth_learner()
    ref.fit(1)
    torch.testing.assert_close(learn.model.a.detach(), ref.model.a.detach())
