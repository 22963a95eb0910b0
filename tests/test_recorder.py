"Metrics, the recorder, its rows and its bars: what chapter 9 promises."
import io
from collections import Counter
from contextlib import ExitStack,contextmanager
from functools import partial
from unittest.mock import patch as mock_patch

import matplotlib.pyplot as plt,pytest,torch,torch.nn as nn
from torch import Tensor
from fastcore.all import L,NS,noop
from scratchai.learner import *
from scratchai.losses import accuracy,mse
from scratchai.recorder import *
from scratchai.recorder import _numbers

def quiet(*args, **kwargs):
    learn = synth_learner(*args, **kwargs)
    learn.logger = noop
    return learn

def with_recorder(rec, **kwargs):
    learn = quiet(**kwargs).remove_cb(Recorder)
    return learn.add_cb(rec)

def make()->AvgMetric: return AvgMetric(mse)
class Ready(Metric): shared = True

def test_what_makes_a_metric():
    with pytest.raises(TypeError, match="'accuracy' is no metric"): synth_learner(metrics='accuracy')
    ready = Ready()
    mine = mk_metric(ready)
    assert (mk_metric(make).name, mine is ready, type(mine), mk_metric(mine) is mine) == ('mse', False, Ready, True)
    assert [mk_metric(o).name for o in (accuracy, partial(accuracy, axis=1), nn.L1Loss())] == ['accuracy','accuracy','l1_loss']
    m = ValueMetric(lambda: 3, 'three')
    assert (m.name, m.value, ValueMetric(id).name, AvgLoss().name, Metric().name, Metric().value) == ('three', 3, 'id', 'loss', 'metric', None)

def test_a_mean_weighs_items_and_keeps_no_graph():
    m = AvgMetric(lambda p,t: p.mean())
    m.reset()
    assert m.value is None
    m.accumulate(NS(pred=torch.full((4,), 1/3, dtype=torch.bfloat16, requires_grad=True), yb=(torch.ones(4),)))
    assert (m.value.dtype, m.value.requires_grad) == (torch.float32, False)
    m.accumulate(NS(pred=torch.tensor(0.5), yb=(torch.tensor(1.),)))
    assert m.count == 5

def test_numbers_in_one_transfer():
    got = _numbers([1, torch.tensor(2), None, torch.tensor(3., dtype=torch.bfloat16), torch.ones(1)*4])
    assert got == [1,2,None,3,4]
    assert AvgSmoothLoss().value is None
    big = 2**24+1
    assert _numbers([torch.tensor(float(big), dtype=torch.float64)]) == [big]

def test_columns():
    learn = with_recorder(Recorder(add_time=False, train_metrics=True, beta=0.5), metrics=[mse])
    learn.fit(1)
    assert learn.recorder.metric_names == ['epoch','train_loss','train_mse','valid_loss','valid_mse']
    assert learn.recorder.smooth.beta == 0.5 and len(learn.recorder.values[0]) == 4 and None not in learn.recorder.values[0]
    learn = with_recorder(Recorder(train_metrics=True, valid_metrics=False), metrics=[mse])
    learn.fit(1)
    assert learn.recorder.metric_names == ['epoch','train_loss','mse','time'] == list(learn.history[0])
    assert (format_time(65), format_time(3700)) == ('01:05', '1:01:40')

def test_a_row_weighs_items_and_not_batches():
    pts = synth_dls(n_trn=1, n_val=1, bs=9)
    x,y = pts.valid[0]
    learn = with_recorder(Recorder(train_metrics=True), data=NS(train=pts.train, valid=[(x[:8],y[:8]), (x[8:],y[8:])]), metrics=mse)
    learn.fit(1)
    row,want = learn.history[0],mse(learn.model(x), y).item()
    assert [row['valid_loss'],row['valid_mse']] == pytest.approx([want]*2, rel=1e-4) and row['train_mse'] == pytest.approx(row['train_loss'], rel=1e-4)

def test_metrics_of_a_half_that_is_not_wanted_are_emptied():
    "The predictions of the last validation do not stay in memory while the next epoch trains"
    class Keeps(Metric):
        def reset(self): self.preds = []
        def accumulate(self, learn): self.preds.append(learn.pred)
        value = property(lambda self: float(len(self.preds)))
    seen = []
    learn = quiet(metrics=Keeps())
    learn.fit(2, cbs=Callback(after_train=lambda self: seen.append(len(self.metrics[0].preds))))
    assert seen == [0,0] and [o['keeps'] for o in learn.history] == [2.,2.]

def test_names_that_come_twice():
    names = 'f1','f1','time','epoch','valid_loss','f1'
    learn = quiet(metrics=[ValueMetric(partial(int, i), n) for i,n in enumerate(names)])
    learn.fit(1)
    assert [learn.history[0][k] for k in ('epoch','f1','f1_2','time_2','epoch_2','valid_loss_2','f1_3')] == [0,0,1,2,3,4,5]

@pytest.mark.parametrize('metric', [lambda p,t: p, lambda p,t: p.detach().numpy()])
def test_a_metric_is_one_number(metric):
    with pytest.raises(ValueError, match='should be one number'): quiet(metrics=metric).fit(1)

def test_two_recorders():
    with pytest.raises(ValueError, match='two `Recorder`s'): quiet(cbs=Recorder(train_metrics=True)).fit(1)

def test_rates_of_groups():
    learn = quiet(splitter=lambda m: [[m.a],[m.b]], lr=slice(1e-3,1e-2))
    learn.fit(1)
    assert learn.lrs[0] == 1e-2 and learn.recorder.group_lrs[-1] == [1e-3,1e-2]

class SkipBatch(Callback):
    def after_pred(self):
        if self.iter==0: raise CancelBatchException
class SkipValid(Callback):
    def before_validate(self): raise CancelValidException
class SkipEpoch(Callback):
    def before_epoch(self):
        if self.epoch==1: raise CancelEpochException

def test_what_was_cut_short_has_no_number():
    learn = quiet(n_trn=3, n_val=3, cbs=SkipBatch)
    learn.fit(1)
    assert (len(learn.recorder.losses), learn.recorder.avg.count, learn.train_iter) == (2, 32, 3)
    learn.fit(2, cbs=SkipValid)
    assert [o[1] for o in learn.recorder.values] == [None]*2 and len(learn.history) == 3
    learn.fit(3, cbs=SkipEpoch)
    assert [[v is None for v in o] for o in learn.recorder.values] == [[False]*2, [True]*2, [False]*2]
    learn = with_recorder(Recorder(train_metrics=True), metrics=mse, cbs=SkipValid)
    learn.fit(1)
    assert [o is None for o in learn.recorder.values[0]] == [False,False,True,True]

def test_the_record_outlives_the_fit_of_a_passing_recorder():
    learn = synth_learner(default_cbs=False, cbs=TrainEvalCallback)
    learn.logger = noop
    learn.fit(2, cbs=(rec := Recorder()))
    assert rec.learn is None and len(rec.values) == len(rec.rows) == 2 and rec.lrs == [1e-3]*20 and len(rec.plot_loss().lines) == 2

def test_history_is_kept_and_the_recorder_begins_anew():
    learn = quiet(metrics=mse)
    for n in (2,1): learn.fit(n)
    assert len(learn.history) == 3 and len(learn.recorder.values) == 1 and learn.recorder.iters == [10]
    assert learn.history[-1]['mse'] == learn.history[-1]['valid_loss'] == learn.recorder.values[-1][1]

def test_plot_loss():
    learn = quiet(lr=0.01, n_trn=30)
    learn.fit(4)
    plot = learn.recorder.plot_loss
    assert [len(o.get_xdata()) for o in plot(show_epochs=True).lines] == [115,2,2,2,2,4]
    assert len(plot(with_valid=False).lines) == 1
    assert plot(skip_start=0, log=True).get_yscale() == 'log'
    ax = plt.subplots()[1]
    assert plot(skip_start=30, ax=ax) is ax and len(ax.lines[1].get_xdata()) == 3
    assert learn.recorder.losses[3] == plot(0).lines[0].get_ydata()[3]

def counting(n, k, f): return lambda *args, **kw: (n.update([k]), f(*args, **kw))[1]

@contextmanager
def counted(ks='item tolist cpu numpy __float__ __int__ __bool__ __index__'.split()):
    "Calls that turn a tensor into a Python number"
    n = Counter()
    with ExitStack() as stack:
        for k in ks: stack.enter_context(mock_patch.object(Tensor, k, counting(n, k, getattr(Tensor, k))))
        yield n

class Terminal(io.StringIO):
    def isatty(self): return True

def test_one_transfer_an_epoch():
    learn = synth_learner(n_trn=20, n_val=20, metrics=[mse, mse, mse])
    with counted() as n, mock_patch('sys.stdout', io.StringIO()): learn.fit(10)
    assert n == Counter(tolist=10)
    with counted() as n, mock_patch('sys.stdout', Terminal()): learn.fit(10)
    assert 10 <= n.total() <= 10*18, n # one a batch would be 210; a slow machine redraws more often

def test_bars_where_there_is_a_screen():
    learn = synth_learner(metrics=mse)
    with mock_patch('sys.stdout', Terminal()) as out: learn.fit(2)
    assert '|█' in out.getvalue() and 'Epoch 2/2' in out.getvalue() and 'train_loss  valid_loss  mse' in out.getvalue()
    with mock_patch('sys.stdout', Terminal()) as out, learn.no_bar(): learn.fit(1)
    assert out.getvalue().count('\n') == 2 and '\r' not in out.getvalue()
    with mock_patch('sys.stdout', Terminal()) as out, learn.no_logging(), learn.no_bar(): learn.fit(1)
    assert out.getvalue() == ''
    with mock_patch('sys.stdout', Terminal()), learn.no_mbar(): learn.fit(1)
    with mock_patch('sys.stdout', Terminal()): learn.fit(3, start_epoch=2)
    assert learn.logger is print and len(learn.history) == 6

def test_logger_is_put_back_after_an_error():
    learn = synth_learner(cbs=Callback(after_loss=lambda self: 1/0))
    with pytest.raises(ZeroDivisionError): learn.fit(1)
    assert learn.logger is print and learn.progress.mbar is None

def test_validate():
    learn = quiet(metrics=mse)
    learn.model.eval()
    res = learn.validate()
    assert res[0] == pytest.approx(res[1]) and not learn.model.training and learn.opt is None
    learn.model.train()
    assert len(learn.validate(0)) == 2 and learn.model.training
    assert (learn.recorder.losses, learn.history) == ([], [])
    assert learn.validate(cbs=Callback(before_epoch=lambda self: throw(CancelFitException))) is None
    other = synth_dls(a=-7., n_val=3).valid
    want = sum(mse(learn.model(x), y) for x,y in other).item()/3
    assert learn.validate(dl=other)[0] == pytest.approx(want, rel=1e-4)
    with pytest.raises(Exception): learn.validate(2)

def throw(e): raise e

def test_validate_leaves_each_layer_in_its_mode():
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1,1))
    for mode in (True,False):
        model.train(mode)
        model[0].train(not mode)
        quiet(model=model).validate()
        assert [o.training for o in model.modules()] == [mode, not mode, mode]

def test_validate_in_a_callback_touches_nothing_of_the_training():
    seen = []
    def look(self):
        if self.training and self.iter==5: seen.append(self.learn.validate())
    plain,looking = quiet(metrics=mse),None
    for cbs in (None, Callback(after_batch=look)):
        torch.manual_seed(0)
        learn = quiet(metrics=mse, cbs=cbs)
        learn.fit(2)
        rows = [{k:v for k,v in o.items() if k!='time'} for o in learn.history]
        if looking is None: looking = rows
    assert rows == looking and len(seen) == 2 and len(seen[0]) == 2

def test_validation_builds_no_graph():
    graphs = set()
    look = Callback(after_loss=lambda self: graphs.add((self.training, self.loss_grad.requires_grad, self.pred.grad_fn is None)))
    quiet().fit(1, cbs=look)
    assert graphs == {(True,True,False), (False,False,True)}
