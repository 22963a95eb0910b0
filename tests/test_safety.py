"Ctrl-C, notes on exceptions and warnings: scratchai.safety. Ctrl-C reaches the main thread only, so each of its tests is a program of its own."
import os,subprocess,sys,warnings

import pytest,torch
from fastcore.all import L,NS
from scratchai.learner import *
from scratchai.losses import mse
from scratchai.safety import *

head = '''
import os,random,signal,threading,time
from contextlib import suppress
import torch
from fastcore.all import *
from scratchai.core import *
from scratchai.learner import *
from scratchai.safety import *
signal.signal(signal.SIGINT, signal.default_int_handler)
Learner.default_callbacks = L(TrainEvalCallback, CtrlCCallback, WhereCallback, CheckCallback)
def press(cb=None): signal.raise_signal(signal.SIGINT)
def handler_is_back(): return signal.getsignal(signal.SIGINT) is signal.default_int_handler
class Count(Callback):
    "What a recorder would see"
    order,n,seen = 50,0,0
    def after_step(self): self.n += 1
    def after_batch(self): self.seen += self.training
'''
def run(src):
    "What a new Python prints that runs `src`, evaluated"
    res = subprocess.run([sys.executable, '-c', head+src], capture_output=True, text=True, timeout=120)
    assert res.returncode==0, res.stderr
    return [eval(o) for o in res.stdout.splitlines()]

def test_ctrl_c_waits_for_the_end_of_the_batch():
    "At each event of the 13th training batch: weights, optimizer and counts are those of 13 batches"
    res = run('''
def trained(ev, times=1):
    set_seed(0)
    count = Count()
    learn = synth_learner(cbs=[count, Callback(**{ev: lambda self: [press() for _ in range(times)] if self.training and self.train_iter==12 else None})])
    try: learn.fit(3)
    except KeyboardInterrupt as e: note = e.__notes__[0]
    state = [(p.item(), learn.opt.state[p]['grad_avg'].item()) for p in learn.model.parameters()]
    return state,count.n,count.seen,note,learn.busy,handler_is_back()
set_seed(0)
learn = synth_learner()
def stop(self):
    if self.train_iter==13: raise CancelFitException
learn.fit(3, cbs=Callback(after_batch=stop))
print([(p.item(), learn.opt.state[p]['grad_avg'].item()) for p in learn.model.parameters()])
for ev in 'after_pred after_loss before_backward after_backward before_step after_step'.split(): print(trained(ev))
print(trained('before_step', 2))
''')
    want,*once,twice = res
    note = 'Raised in the callback `CtrlCCallback` at `after_batch`, in the training of epoch 1, batch 3 of 10.'
    for o in once: assert o==(want, 13, 13, note, False, True)
    assert twice[1:3]==(12,12) and twice[4:]==(False,True)
    assert 'at `before_step`' in twice[3]

def test_ctrl_c_after_the_batch_was_left():
    "By cancelling it, its training, its epoch or the fit, or by an error in another callback's `after_batch`"
    res = run('''
def left(exc, ev='after_pred'):
    def f(self):
        if self.training and self.epoch==0 and self.iter==3:
            press()
            raise exc
    learn = synth_learner(cbs=Count)
    try: learn.fit(2, cbs=Callback(**{ev:f}))
    except KeyboardInterrupt as e: ended = e.__notes__[0].split('`')[3] if hasattr(e, '__notes__') else 'cleanup_fit'
    except Exception as e: ended = type(e).__name__
    learn.fit(1)
    return ended,learn.count.seen,learn.busy,handler_is_back()
for e in (CancelBatchException, CancelTrainException, CancelEpochException, CancelFitException): print(left(e))
print(left(ValueError, 'after_batch'))
''')
    assert res==[('after_batch',14,False,True), ('after_train',13,False,True), ('after_epoch',13,False,True), ('cleanup_fit',13,False,True), ('cleanup_fit',13,False,True)]

def test_ctrl_c_at_every_event():
    "Whichever callback is at work, first or last: everything is let go, and the next fit is whole"
    for o in run('''
for ev in event:
    for order in (-100,100):
        class Press(Callback): n = 0
        Press.order = order
        def f(self):
            self.n += 1
            if self.n==1: press()
        setattr(Press, ev, f)
        learn,ended = synth_learner(n_trn=2, n_val=1, cbs=Count),'end'
        n = len(learn.cbs)
        try:
            if ev=='after_create': continue
            learn.fit(1, cbs=Press)
        except KeyboardInterrupt: ended = 'Ctrl-C'
        ok = len(learn.cbs)==n and not learn.busy and torch.is_grad_enabled() and not learn.xb and handler_is_back()
        learn.count.n = learn.count.seen = 0
        learn.fit(1)
        print((ev, order, ended, ok, learn.count.n, learn.count.seen))
'''): assert o[2:]==(('end' if 'cancel' in o[0] else 'Ctrl-C'), True, 2, 2), o

def test_ctrl_c_while_waiting_for_data_in_a_thread_and_nested():
    assert run('''
class Data(list):
    def __iter__(self):
        for i,b in enumerate(list.__iter__(self)):
            if i==3: press()
            yield b
learn = synth_learner(cbs=Count)
learn.dls.loaders[0] = Data(learn.dls.train)
with suppress(KeyboardInterrupt): learn.fit(3)
print((learn.count.seen, learn.busy, handler_is_back()))
t = threading.Thread(target=learn.fit, args=(0,))
t.start(), t.join()
print(handler_is_back())
one,two = synth_learner(cbs=Count),synth_learner(cbs=Count)
one.fit(1, cbs=Callback(after_batch=lambda self: two.fit(1) if self.train_iter==2 and self.training else None))
print(handler_is_back())
def inner(self):
    if self.training and self.train_iter==2: two.fit(1, cbs=Callback(after_loss=lambda self: press() if self.training and self.iter==1 else None))
try: one.fit(1, cbs=Callback(after_pred=inner))
except KeyboardInterrupt: print((one.count.seen, one.busy, two.busy, handler_is_back()))
signal.signal(signal.SIGINT, signal.SIG_IGN)
learn.dls.loaders[0] = list(learn.dls.train)
learn.fit(1, cbs=Callback(after_loss=press))
print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
''')==[(3,False,True), True, True, (13,False,False,True), True]

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_forked_process_gets_ctrl_c_at_once():
    assert run('''
def fork(self):
    if not self.training: return
    pid = os.fork()
    if pid: return seen.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    with suppress(KeyboardInterrupt): press() or os._exit(0)
    os._exit(7)
seen,learn = [],synth_learner(n_trn=1, n_val=1)
learn.fit(1, cbs=Callback(after_loss=fork))
print(seen)
''')==[[7]]

@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs setitimer')
def test_ctrl_c_at_any_moment():
    "Learner, callbacks, switch for gradients and handler are as they were; the fit after it trains"
    hits,bad = run('''
learn = synth_learner(n_trn=30, n_val=10, cbs=Count)
n_cbs,hits,bad,secs = len(learn.cbs),0,0,[]
for _ in range(5):
    start = time.perf_counter()
    learn.fit(1)
    secs.append(time.perf_counter()-start)
signal.signal(signal.SIGALRM, lambda *args: signal.raise_signal(signal.SIGINT))
for i in range(60):
    count = learn.count.n,learn.count.seen
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.1, 0.9)*min(secs))
        learn.fit(1, cbs=Callback())
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt: hits += 1
    whole = learn.count.n-count[0]==learn.count.seen-count[1]
    bad += not (whole and len(learn.cbs)==n_cbs and not learn.busy and torch.is_grad_enabled() and handler_is_back() and not learn.xb)
print(hits)
print(bad)
''')
    assert hits>30 and bad==0

@pytest.fixture(autouse=True)
def plain(monkeypatch): monkeypatch.setattr(Learner, 'default_callbacks', L(TrainEvalCallback)) # other tests may have made it longer

class Fails(Callback):
    "Fails at one event of epoch `epoch`"
    def __init__(self, ev, epoch=1):
        def _f():
            if self.learn.epoch==epoch: raise ValueError('here')
        setattr(self, ev, _f)

def note(data=None, cbs=(), n=2, **kwargs):
    learn = synth_learner(data=data, cbs=[WhereCallback, *cbs], **kwargs)
    try: learn.fit(n)
    except Exception as e: return getattr(e, '__notes__', [])
    raise AssertionError('nothing was raised')

@pytest.mark.parametrize('ev,where', dict(before_fit='.', before_epoch=', in epoch 1.', before_train=', in the training of epoch 1.',
    before_batch=', in the training of epoch 1, batch 1 of 10.', before_step=', in the training of epoch 1, batch 1 of 10.',
    after_batch=', in the training of epoch 1, batch 1 of 10.', after_train=', in the training of epoch 1.', before_validate=', in the validation of epoch 1.',
    after_validate=', in the validation of epoch 1.', after_epoch=', in epoch 1.', after_fit='.').items())
def test_where_a_callback_failed(ev, where):
    assert note(cbs=[Fails(ev, 0 if ev=='before_fit' else 1)])==[f'Raised in the callback `Fails` at `{ev}`{where}']

def test_where_the_data_or_the_model_failed():
    class Broken(list):
        def __iter__(self):
            yield from self[:3]
            raise OSError('disk')
    assert note(NS(train=Broken(synth_dls().train), valid=[]))==['Raised in the training of epoch 0.']
    assert note(NS(train=(o for o in range(3)), valid=[]))==['Raised in the training of epoch 0.'] # no length
    x = torch.randn(9, 1)
    model = torch.nn.Sequential(torch.nn.Linear(1,2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2,1))
    assert note(NS(train=[(x[:8],x[:8]),(x[8:],x[8:])], valid=[]), model=model)==['Raised in the training of epoch 0, batch 2 of 2.']

def test_a_cancel_that_nobody_caught_and_an_exception_that_is_not_ours():
    class Late(Callback):
        def after_epoch(self): raise CancelBatchException
    assert note(cbs=[Late])[0].endswith('in epoch 0. Nothing that this exception could cancel was under way.')
    learn = synth_learner(cbs=WhereCallback)
    try: learn.fit(1, cbs=Fails('after_loss', 0))
    except ValueError as e:
        learn.fit(1)
        assert len(e.__notes__)==1
    assert learn.where.outer is None

def test_a_fit_inside_a_fit_has_two_places():
    class Inside(Callback):
        def after_epoch(self): synth_learner(cbs=[WhereCallback, Fails('after_loss', 0)]).fit(1)
    assert note(cbs=[Inside])==['Raised in the callback `Fails` at `after_loss`, in the training of epoch 0, batch 1 of 10.',
        'Raised in the callback `Inside` at `after_epoch`, in epoch 0.']

def said(learn, **kwargs):
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        learn.fit(1, cbs=CheckCallback, **kwargs)
    return [str(o.message) for o in ws]

def test_parameters_that_the_optimizer_does_not_know():
    learn = synth_learner(model=torch.nn.Sequential(torch.nn.Linear(1,1), torch.nn.Linear(1,1)))
    assert said(learn)==[]
    learn.model[1] = torch.nn.Linear(1,1)
    assert said(learn)[0].startswith('2 parameter(s) that want a gradient, such as `1.weight`')
    assert said(learn, reset_opt=True)==[]
    learn.model[0].weight.requires_grad_(False)
    assert said(learn)==[]

def test_sets_without_batches_and_batches_without_targets():
    x = torch.randn(9, 1)
    assert said(synth_learner(n_trn=0))==['The training set has no batches, so there is no loss and no metric.']
    for valid in (None,[]): assert said(synth_learner(data=NS(train=[(x,x)], valid=valid)))==['The validation set has no batches, so there is no loss and no metric.']
    for b in ((x,), x): assert 'without targets' in said(synth_learner(data=NS(train=[b], valid=[x])))[0]

def test_a_loss_without_a_graph():
    learn = synth_learner()
    learn.create_opt()
    for p in learn.model.parameters(): p.requires_grad_(False)
    with pytest.raises(RuntimeError, match='are all of them frozen'): said(learn)
    learn = synth_learner(loss_func=lambda p,t: mse(p.detach(), t))
    with pytest.raises(RuntimeError, match='did something detach it'): said(learn)
