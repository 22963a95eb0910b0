"Callbacks that watch a number, and files of weights: scratchai.tracker"
import json,math,operator,os,re,sys,warnings
from unittest.mock import patch as mock_patch

import matplotlib.pyplot as plt,numpy as np,pytest,torch
from fastcore.all import L,NS,Path,partial,test_close as close
from scratchai.core import *
from scratchai.layers import *
from scratchai.learner import *
from scratchai.losses import *
from scratchai.module import *
from scratchai.optimizer import *
from scratchai.optimizers import Lion,OptimWrapper,RAdam
from scratchai.recorder import *
from scratchai.schedule import *
from scratchai.tracker import *

@pytest.fixture
def quick(tmp_path):
    def _mk(**kwargs):
        set_seed(7)
        return synth_learner(**{'path':tmp_path, 'lr':0.05, **kwargs})
    return _mk

@pytest.fixture
def scripted(quick):
    "A learner whose metric `score` takes these values, one an epoch"
    def _mk(*vals, **kwargs):
        it = iter(vals)
        return quick(metrics=ValueMetric(lambda: next(it), 'score'), **kwargs)
    return _mk

def run(learn, n=1, cbs=None, **kwargs):
    with learn.no_logging(): learn.fit(n, cbs=cbs, **kwargs)
    return learn

def no_valid(self): raise CancelValidException
def epochs(learn): return len(learn.history)
def weights(learn): return [o.clone() for o in learn.model.state_dict().values()]
def equal(a, b): return all(map(torch.equal, a, b))

# Numbers that are no numbers

@pytest.mark.parametrize('lr', [1e15,1e25])
def test_no_nan_gets_into_the_weights(quick, lr, capsys):
    learn = quick(lr=lr)
    with learn.no_bar(): learn.fit(2, cbs=TerminateOnNaNCallback)
    assert torch.isfinite(learn.model.a) and learn.train_iter<5
    assert re.search(r'Epoch 0, batch \d: the loss is (inf|nan), so training stops', capsys.readouterr().out)
    run(quick(lr=lr), 2, TerminateOnNaNCallback)
    assert capsys.readouterr().out==''

# Which number is better

falls = 'valid_loss error_rate rmse mae mape nll rmsle mean_poisson_deviance hausdorff_distance kl_divergence brier'.split()
rises = 'accuracy f1_score roc_auc_score dice jaccard_coeff r2_score precision recall psnr'.split()
def test_which_way_is_better():
    assert [o for o in falls+rises if TrackerCallback(o).comp(0,1)]==falls
    assert TrackerCallback(accuracy).monitor=='accuracy'

class Bests(TrackerCallback):
    def after_epoch(self):
        super().after_epoch()
        self.seen = getattr(self, 'seen', '') + '.x'[self.new_best]

@pytest.mark.parametrize('vals,kwargs,want', [((1.,2.,2.,3.,math.nan,2.5), {}, 'xx.x..'), ((3.,2.9,2.,2.5), dict(comp=operator.lt, min_delta=0.5), 'x.x.'),
    ((1.,1.4,2.), dict(min_delta=0.5), 'x.x'), ((3.,2.), dict(comp=np.less), 'xx'), ((math.nan,1.), {}, '.x'), ((3.,2.4), dict(comp=operator.lt, min_delta=-0.5), 'xx')])
def test_new_bests(scripted, vals, kwargs, want):
    run(scripted(*vals), len(vals), cb := Bests('score', **kwargs))
    assert cb.seen==want

def test_reset_on_fit(scripted):
    for reset,want in ((False,(5.,False)),(True,(1.,True))):
        learn,cb = scripted(5., 1.),TrackerCallback('score', reset_on_fit=reset)
        run(run(learn, 1, cb), 1, cb)
        assert (cb.best, cb.new_best)==want

def test_what_can_be_monitored(quick):
    with pytest.raises(ValueError, match='only train_loss, valid_loss, mse'): run(quick(metrics=mse), 1, TrackerCallback('accuracy'))
    for o in ('epoch','time'):
        with pytest.raises(ValueError, match='to watch'): run(quick(), 1, TrackerCallback(o))
    assert epochs(run(quick(metrics=mse), 2, TrackerCallback(mse)))==2
    with pytest.raises(AttributeError, match='recorder'): quick(default_cbs=False, metrics=mse).fit(1, cbs=TrackerCallback())
    run(quick(cbs=Callback(before_validate=no_valid)), 1, cb := TrackerCallback())
    assert (cb.new_best, cb.best)==(False,math.inf)

def test_nothing_happens_in_a_validation_or_a_search(quick, tmp_path):
    learn = quick(cbs=[SaveModelCallback(), EarlyStoppingCallback(), ReduceLROnPlateau(), CSVLogger(), ShowGraphCallback(), TensorBoardCallback(tmp_path/'run')])
    learn.validate()
    learn.lr_find(num_it=20, show_plot=False)
    assert os.listdir(tmp_path)==[] and plt.get_fignums()==[]

def test_a_search_after_a_fit_leaves_files_and_figures_alone(quick, tmp_path):
    cbs = [SaveModelCallback(), EarlyStoppingCallback(patience=9), ReduceLROnPlateau(patience=9), CSVLogger(), ShowGraphCallback(), TensorBoardCallback(tmp_path/'run'), PeakMemory()]
    assert not any(type(o).run_lr_find for o in cbs)
    learn = run(quick(cbs=cbs), 2)
    def seen(): return {o: (o.stat().st_mtime_ns, o.read_bytes()) for o in tmp_path.rglob('*') if o.is_file()},[(o.best,o.wait) for o in cbs[1:3]],cbs[4].fig,learn.cbs
    old = seen()
    learn.lr_find(num_it=20, show_plot=False)
    assert seen()==old and len(old[0])==3 and plt.get_fignums()==[]

# Stopping

@pytest.mark.parametrize('vals,kwargs,want', [((1.,2.,1.,3.,1.,1.,5.), dict(patience=2), 6), ((1.,2.,1.,3.), {}, 3), ((1.,1.2,3.), dict(min_delta=0.5), 2),
    ((1.,2.,3.), dict(comp=operator.lt), 2), ((1.,2.,3.), dict(patience=0), 3), ((1.,2.,1.,3.), dict(patience=0), 3), ((1.,1.), dict(patience=-1), 2)])
def test_early_stopping(scripted, vals, kwargs, want):
    assert epochs(run(scripted(*vals), len(vals), EarlyStoppingCallback('score', **kwargs)))==want

def test_stopping_says_why(scripted, capsys):
    scripted(1., 3., 2., 2.).fit(4, cbs=EarlyStoppingCallback('score', patience=2))
    assert 'Epoch 3: training stops, 2 after the best score, 3.' in capsys.readouterr().out
    learn,cb = scripted(5., 1., 2.),EarlyStoppingCallback('score', reset_on_fit=False)
    assert epochs(run(run(learn, 1, cb), 2, cb))==2

# Slowing down

def lrs(learn): return learn.recorder.lrs[::10]
def test_the_rate_is_divided(scripted):
    close(lrs(run(scripted(1., 2., 2., 2., 3., 1., lr=0.08), 6, ReduceLROnPlateau('score', factor=2., min_lr=0.03))), [0.08,0.08,0.08,0.04,0.03,0.03])
    two = run(scripted(1., 1., 1., lr=slice(0.01,0.1), splitter=lambda m: L([m.a],[m.b])), 3, ReduceLROnPlateau('score', patience=2))
    close([h['lr'] for h in two.opt.hypers], [0.001,0.01])
    close(lrs(run(scripted(3., 2., 1.9, 1., lr=0.1), 4, ReduceLROnPlateau('score', comp=operator.lt, min_delta=0.5))), [0.1,0.1,0.1,0.01])
    cb = ReduceLROnPlateau('score', reset_on_fit=False)
    close(run(run(scripted(5., 1., lr=0.1), 1, cb), 1, cb).opt.hypers[0]['lr'], 0.01)

@pytest.mark.parametrize('vals,want', [((1.,2.,3.), [0.1]*3), ((1.,2.,1.,3.), [0.1,0.1,0.1,0.01]), ((1.,1.,1.), [0.1,0.1,0.01])])
def test_patience_0_is_like_1(scripted, vals, want):
    close(lrs(run(scripted(*vals, lr=0.1), len(vals), ReduceLROnPlateau('score', patience=0))), want)

@pytest.mark.parametrize('factor', [1.,0.1,0.,-2.])
def test_it_divides(factor):
    with pytest.raises(ValueError, match='must be more than 1'): ReduceLROnPlateau(factor=factor)

def test_only_cuts_that_were_are_reported(scripted, capsys):
    cb = ReduceLROnPlateau('score', factor=2.)
    scripted(2., 1., 1., lr=0.08).fit(3, cbs=cb)
    said = [o for o in capsys.readouterr().out.splitlines() if 'no better' in o]
    assert said==['Epoch 2: score is no better, so the learning rate is 0.04.'] # the last epoch's cut was never used
    class Schedule(Callback):
        def before_batch(self): self.opt.set_hyper('lr', 0.01)
    learn = scripted(2., 1., 1.)
    with pytest.warns(UserWarning, match='`ReduceLROnPlateau`: a schedule sets the rate'): learn.fit(3, cbs=[cb,Schedule()])
    assert 'no better' not in capsys.readouterr().out
    learn = scripted(3., 2., 1., 1.)
    with pytest.warns(UserWarning, match='a schedule sets the rate'), learn.no_logging(): learn.fit_one_cycle(4, cbs=cb)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        run(scripted(2., 1., 3.), 3, cb)

# Files of weights

@pytest.mark.parametrize('name,file', [('half','half.safetensors'), ('half.safetensors','half.safetensors'), ('half.pth','half.pth'),
    ('v1.5','v1.5.safetensors'), ('x/line','x/line.safetensors'), (Path('x/line.pth'),'x/line.pth')])
def test_half_way(quick, tmp_path, name, file):
    one = run(quick(model_dir='m'))
    assert one.save(name)==tmp_path/'m'/file and [str(o.relative_to(tmp_path/'m')) for o in (tmp_path/'m').rglob('*') if o.is_file()]==[file]
    two,cold = [run(quick(data=one.dls, model_dir='m').load(name, with_opt=o)) for o in (None,False)]
    run(one)
    assert equal(weights(one), weights(two)) and not equal(weights(one), weights(cold))

def test_files_of_torch(quick, tmp_path):
    learn = run(quick())
    close(torch.load(learn.save('all.pth'), weights_only=True)['model']['a'], learn.model.a.detach())
    assert set(torch.load(learn.save('w.pth', with_opt=False), weights_only=True))=={'a','b'}
    theirs = synth_learner(path=tmp_path)
    torch.save(dict(model=learn.model.state_dict(), opt=dict(state={}, param_groups=[])), tmp_path/'models'/'theirs.pth') # as fastai writes it
    assert equal(weights(theirs.load('theirs.pth')), weights(learn)) and theirs.opt is None
    with pytest.raises(ValueError, match='has no state of an optimizer'): theirs.load('theirs.pth', with_opt=True)
    class Evil:
        def __reduce__(self): return os.mkdir,(str(tmp_path/'evil'),)
    torch.save(dict(a=Evil()), tmp_path/'models'/'evil.pth')
    with pytest.raises(ValueError, match='holds no weights'): theirs.load('evil.pth')
    assert not (tmp_path/'evil').exists()

def test_weights_of_another_program(quick, tmp_path):
    "A `state_dict` of `torch.nn` goes into a model of ours; a model, a list and other things are refused; what does not fit is listed"
    theirs = torch.nn.Sequential(torch.nn.Linear(1,4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4,1))
    (d := tmp_path/'models').mkdir()
    for name,o in dict(sd=theirs.state_dict(), model=theirs, list=[1], nested=dict(model=theirs.state_dict())).items(): torch.save(o, d/f'{name}.pth')
    ours = quick(model=Sequential(Linear(1,4), BatchNorm(4), Linear(4,1)))
    for name in ('sd.pth','nested.pth'):
        assert torch.equal(ours.load(name).model.state_dict()['0.weight'], theirs[0].weight) and ours.opt is None
    for name in ('model.pth','list.pth'):
        with pytest.raises(ValueError, match=f'{name} holds no weights.*(only tensors|has a list)'): ours.load(name)
    with pytest.raises(RuntimeError, match=r'Missing: 3.weight.*Unexpected: 2.weight, 2.bias.*Another shape: .*0.bias \(saved \(4,\), here \(2,\)\)'):
        quick(model=Sequential(Linear(1,2), BatchNorm(4), Flatten(), Linear(4,1))).load('sd.pth')

@pytest.mark.parametrize('end', ['','.pth'])
def test_from_frozen_to_unfrozen(quick, end):
    "A file of a frozen body goes into an unfrozen one, and the other way round, with the optimizer's state"
    def make(frozen, data=None):
        learn = quick(model=Sequential(Linear(1,4), Linear(4,1)), splitter=lambda m: [m[0].parameters(), m[1].parameters()], opt_func=Adam, **({'data':data} if data else {}))
        (learn.freeze if frozen else learn.unfreeze)()
        return learn
    for frozen in (True,False):
        a = run(make(frozen))
        a.save('x'+end)
        b = make(not frozen, a.dls).load('x'+end)
        assert equal(weights(a), weights(b)) and b.opt.frozen_idx==int(not frozen)
        run(b)
        assert torch.equal(a.model[0].weight, b.model[0].weight)==(not frozen) and not torch.equal(a.model[1].weight, b.model[1].weight)

@pytest.mark.parametrize('end', ['.safetensors','.pth'])
def test_what_does_not_fit_changes_nothing(quick, tmp_path, end):
    run(quick()).save(f'line{end}')
    wide,narrow = [synth_learner(path=tmp_path, model=torch.nn.Linear(1,o)) for o in (2,1)]
    with pytest.raises(RuntimeError, match=f'line{end} does not fit the model'): narrow.load(f'line{end}')
    wide.save(f'wide{end}')
    for strict in (True,False):
        with pytest.raises(RuntimeError, match=f'wide{end} does not fit the model'): narrow.load(f'wide{end}', strict=strict)
    c = synth_learner(path=tmp_path)
    old = weights(c)
    assert c.load(f'wide{end}', strict=False) is c and equal(weights(c), old) # no name in common
    with pytest.raises(ValueError, match='has no state of an optimizer'): c.load(f'wide{end}', with_opt=True, strict=False)
    with pytest.raises(FileNotFoundError): c.load(f'nothing{end}')
    (tmp_path/'models'/f'broken{end}').write_bytes((tmp_path/'models'/f'wide{end}').read_bytes()[:50])
    with pytest.raises(ValueError, match='is damaged'): c.load(f'broken{end}')

def test_device(quick):
    class Moves(RegModel):
        def to(self, dev): self.__dict__.setdefault('moved', []).append(dev)
    quick().save('line')
    m = quick(model=Moves())
    assert not hasattr(m.load('line').model, 'moved') and m.load('line', None, 'cpu').model.moved==['cpu'] and m.opt is None

kinds = dict(sgd=SGD, mom=partial(SGD, mom=0.9), adam=Adam, lion=Lion, radam=RAdam, adamw=partial(OptimWrapper, opt=torch.optim.AdamW),
    torch_sgd=partial(OptimWrapper, opt=torch.optim.SGD, momentum=0.9))

@pytest.mark.parametrize('end', ['','.pth'])
@pytest.mark.parametrize('kind', kinds)
def test_every_optimizer_goes_on(quick, kind, end):
    def net(): return torch.nn.Sequential(torch.nn.Linear(1,4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4,1))
    a = run(quick(model=net(), opt_func=kinds[kind]))
    a.save('net'+end)
    b = quick(model=net(), opt_func=kinds[kind], data=a.dls).load('net'+end)
    sds = [o.opt.state_dict() for o in (a,b)]
    assert [str(sorted((n,sorted(s.items())) for n,s in o['state'].items() if s)) for o in sds][0]==[str(sorted((n,sorted(s.items())) for n,s in o['state'].items() if s)) for o in sds][1]
    assert sds[0]['hypers']==sds[1]['hypers']
    assert equal(weights(run(a)), weights(run(b)))

@pytest.mark.parametrize('kind', kinds)
def test_another_optimizer_is_refused(quick, kind):
    run(quick(opt_func=kinds[kind])).save('kind')
    for f in (f for o,f in kinds.items() if o!=kind):
        learn = run(quick(opt_func=f))
        old = weights(learn),str(learn.opt.state_dict())
        with pytest.raises(ValueError, match='optimizer state does not fit|has the state of'): learn.load('kind')
        assert equal(weights(learn), old[0]) and str(learn.opt.state_dict())==old[1]

@pytest.mark.parametrize('end', ['.safetensors','.pth'])
def test_a_full_disk_keeps_the_old_file(quick, tmp_path, end):
    learn = run(quick())
    old = learn.save(f'net{end}').read_bytes()
    def full(f): raise OSError(28, 'No space left on device')
    with mock_patch('os.fsync', full), pytest.raises(OSError): run(learn).save(f'net{end}')
    assert os.listdir(tmp_path/'models')==[f'net{end}'] and (tmp_path/'models'/f'net{end}').read_bytes()==old

# The best model

class Slopes(Callback):
    def before_fit(self): self.seen = []
    def after_epoch(self): self.seen.append(self.model.a.item())

@pytest.mark.parametrize('vals,kwargs,best', [((1.,3.,2.,2.), {}, 1), ((2.,1.), dict(comp=operator.lt), 1), ((1.,1.1), dict(min_delta=0.5), 0), ((1.,3.,2.), dict(fname='best.pth'), 1)])
def test_the_best_is_loaded_at_the_end(scripted, tmp_path, vals, kwargs, best):
    learn = run(scripted(*vals), len(vals), [slopes := Slopes(), save := SaveModelCallback('score', **kwargs)])
    assert learn.model.a.item()==slopes.seen[best] and save.last_saved_path.name==kwargs.get('fname', 'model.safetensors')

def test_what_trackers_keep_is_plain(scripted):
    "So that a checkpoint can hold it, and another process can take it up"
    cbs = [SaveModelCallback('score'), EarlyStoppingCallback('score', patience=9), ReduceLROnPlateau('score', patience=9), CSVLogger()]
    run(scripted(1., 3., 2.), 3, cbs)
    for old,new in zip(cbs[:3], (SaveModelCallback('score'), EarlyStoppingCallback('score'), ReduceLROnPlateau('score'))):
        new.load_state_dict(json.loads(json.dumps(old.state_dict())))
        assert (new.best, new.new_best)==(3.,False) and getattr(new, 'wait', 1)==1
    assert new.state_dict()==old.state_dict() and SaveModelCallback().last_saved_path is None
    (save := SaveModelCallback('score')).load_state_dict(cbs[0].state_dict())
    assert save.last_saved_path==cbs[0].last_saved_path and save.last_saved_path.exists()
    assert json.loads(json.dumps(cbs[3].state_dict()))['rows'][0][0]=='epoch'

def test_best_after_an_early_stop_and_an_error(scripted):
    cbs = [slopes := Slopes(), SaveModelCallback('score'), EarlyStoppingCallback('score', patience=2)]
    learn = run(scripted(1., 3., 2., 2., 2.), 5, cbs)
    assert (len(slopes.seen), learn.model.a.item())==(4,slopes.seen[1])
    def boom(self):
        if self.epoch==3: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): run(scripted(1., 3., 2., 2., 2.), 5, [slopes, SaveModelCallback('score'), Callback(after_train=boom)])
    assert learn.load('model').model.a.item()==slopes.seen[1]

def test_a_file_of_last_week_is_left_alone(scripted, tmp_path):
    (tmp_path/'models').mkdir()
    (tmp_path/'models'/'model.safetensors').write_text('not a model')
    run(scripted(math.nan, math.nan), 2, SaveModelCallback('score'))
    assert (tmp_path/'models'/'model.safetensors').read_text()=='not a model'
    learn,cb,slopes = scripted(5., 1.),SaveModelCallback('score', reset_on_fit=False),Slopes()
    run(run(learn, 1, [slopes,cb]), 1, cb)
    assert learn.model.a.item()==slopes.seen[0]

@pytest.mark.parametrize('fname,every,want', [('epoch',2,'epoch_0 epoch_2 epoch_4'), ('e.pth',True,'e_0.pth e_1.pth e_2.pth e_3.pth e_4.pth'), ('v1.5',4,'v1.5_0 v1.5_4')])
def test_every_few_epochs(quick, tmp_path, fname, every, want):
    run(quick(), 5, SaveModelCallback(every_epoch=every, fname=fname))
    assert sorted(o.name.removesuffix('.safetensors') for o in (tmp_path/'models').iterdir())==want.split()

def test_at_the_end(scripted):
    with pytest.raises(ValueError, match='either `every_epoch` or `at_end`'): SaveModelCallback(every_epoch=True, at_end=True)
    learn = run(scripted(2., 1.), 2, [slopes := Slopes(), SaveModelCallback('score', at_end=True)])
    assert learn.load('model').model.a.item()==slopes.seen[1]

@pytest.mark.parametrize('with_opt,best', [(True,1),(False,3)])
def test_the_best_optimizer(scripted, with_opt, best):
    moms = []
    look = Callback(after_epoch=lambda self: moms.append(self.opt.state[self.model.a]['grad_avg'].item()))
    learn = run(scripted(1., 3., 2., 2.), 4, [look, SaveModelCallback('score', with_opt=with_opt)])
    assert learn.opt.state[learn.model.a]['grad_avg'].item()==moms[best]

# Tables

def test_a_line_an_epoch(quick, tmp_path):
    learn = run(quick(metrics=mse), 2, log := CSVLogger())
    assert log.read_log()==learn.history and (tmp_path/'history.csv').read_text().startswith('epoch,train_loss,valid_loss,mse,time\n0,')
    run(learn, 1, more := CSVLogger(append=True))
    assert more.read_log()==learn.history and len(more.read_log())==3
    (tmp_path/'cut.csv').write_text((tmp_path/'history.csv').read_text().rstrip()) # an editor's last line without its end
    run(learn, 1, cut := CSVLogger('cut.csv', append=True))
    assert cut.read_log()==learn.history
    with pytest.raises(ValueError, match='has the columns'): run(quick(), 1, CSVLogger(append=True))
    assert len(more.read_log())==3
    run(quick(), 1, log)
    assert len(log.read_log())==1

def test_columns_of_the_same_name(quick):
    ms = [ValueMetric(lambda: 1., 'm'), ValueMetric(lambda: 2., 'm'), ValueMetric(lambda: 3., 'time')]
    learn = run(quick(metrics=ms), 1, log := CSVLogger('deep/er/pairs.csv'))
    assert list(log.read_log()[0].items())==list(learn.history[0].items()) and [log.read_log()[0][k] for k in ('m','m_2','time_2')]==[1.,2.,3.]

@pytest.mark.parametrize('v', ['text','a,"b"\nc',-3,1e-20,math.inf,None])
def test_values_come_back(quick, v):
    run(quick(metrics=ValueMetric(lambda: v, 'µ')), 1, log := CSVLogger())
    assert log.read_log()[0]['µ']==v

def test_a_row_without_validation(quick):
    run(quick(cbs=Callback(before_validate=no_valid)), 1, log := CSVLogger(append=True))
    assert log.read_log()[0]['valid_loss'] is None

# Pictures and event files

def test_the_graph_is_as_long_as_the_training(scripted):
    graph = ShowGraphCallback((4,3))
    run(scripted(3., 2., 1., lr=0.03), 5, [graph, EarlyStoppingCallback('score', patience=2)])
    assert [len(o.get_xdata()) for o in graph.ax.lines]==[30,3] and graph.ax.get_xlim()==(0.,50.) and plt.get_fignums()==[]
    assert tuple(graph.fig.get_size_inches())==(4.,3.)

def read(path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    return EventAccumulator(str(path)).Reload()
def scalars(path): return {k: [(o.step,o.value) for o in read(path).Scalars(k)] for k in read(path).Tags()['scalars']}

def test_event_files(quick, tmp_path):
    pytest.importorskip('tensorboard')
    learn = run(quick(metrics=mse), 2, board := TensorBoardCallback(tmp_path/'run', every=5))
    got = scalars(tmp_path/'run')
    close([o[1] for o in got['train_loss']], learn.recorder.losses, 1e-5)
    close([o[1] for o in got['mse']], [o['mse'] for o in learn.history], 1e-5)
    assert [o[0] for o in got['mse']]==[10,20] and [o[0] for o in got['lr_0']]==[5,10,10,15,20,20]
    run(learn, 1, board)
    assert scalars(tmp_path/'run')['train_loss'][-1][0]==30 and read(tmp_path/'run').Tags()['images']==[]
    run(quick(opt_func=partial(OptimWrapper, opt=torch.optim.AdamW)), 1, TensorBoardCallback(tmp_path/'adamw')) # its hypers are not all numbers
    close(scalars(tmp_path/'adamw')['mom_0'][-1][1], 0.9)

def test_pictures_with_their_predictions(tmp_path, quick):
    pytest.importorskip('tensorboard')
    xb,yb = torch.rand(8,3,16,16),torch.arange(8)
    data = NS(train=[(xb,yb)]*2, valid=[(xb,yb)]*2, vocab=list('abcdefghij'))
    with quick(data=data, model=simple_cnn(), loss_func=cross_entropy).no_logging() as learn: learn.fit(2, cbs=TensorBoardCallback(tmp_path/'seen', log_preds=True, n_preds=3))
    assert [o.step for o in read(tmp_path/'seen').Images('target / prediction')]==[2,4] and plt.get_fignums()==[]
    with pytest.raises(ValueError, match='is for pictures'): run(quick(), 1, TensorBoardCallback(tmp_path/'r', log_preds=True))

def test_no_tensorboard(quick, tmp_path):
    with mock_patch.dict(sys.modules, {'torch.utils.tensorboard':None}), pytest.raises(ImportError, match='tensorboard'):
        run(quick(), 1, TensorBoardCallback(tmp_path/'none'))
    assert not (tmp_path/'none').exists()

# Memory

class Hog(Callback):
    def before_train(self): self.big = torch.ones(200*2**18) if self.epoch==1 else None
    def after_train(self): self.big = None

def test_peak_memory(quick):
    learn = run(quick(), 3, [PeakMemory(),Hog()])
    peaks = [o['peak_mb'] for o in learn.history]
    if os.access('/proc/self/clear_refs', os.W_OK): assert 150 < peaks[1]-peaks[2] < 250
    assert len(learn.metrics)==0
    assert len(quick(model=ReLU()).validate(cbs=PeakMemory()))==2 # no parameters
    with mock_patch.object(Path, 'read_text', lambda self: ''): assert PeakMemory().peak() is None # another system

# All together

class Breaks(Callback):
    "Raise `exc` at the first `event_name`"
    order,failed = 58,False
    def __init__(self, event_name, exc): setattr(self, event_name, partial(self.fail, exc))
    def fail(self, exc):
        self.failed,first_time = True,not self.failed
        if first_time: raise exc

@pytest.mark.slow
@pytest.mark.parametrize('exc', [ValueError,KeyboardInterrupt,CancelFitException])
def test_they_get_along(quick, tmp_path, exc):
    "An error at the first visit to each event, with all of them on board, and then another fit"
    pytest.importorskip('tensorboard')
    def all_of_them(): return [TerminateOnNaNCallback(), SaveModelCallback(with_opt=True), EarlyStoppingCallback(patience=2), CSVLogger(), ShowGraphCallback(),
        PeakMemory(), ReduceLROnPlateau(), TensorBoardCallback(tmp_path/'broken')]
    def broken(event_name):
        learn,end = quick(n_trn=3, metrics=mse),'goes on'
        n = len(learn.cbs)
        try: run(learn, 2, [*all_of_them(), Breaks(event_name, exc)])
        except BaseException as e: end = type(e).__name__
        assert (len(learn.cbs), len(learn.metrics), learn.busy, plt.get_fignums())==(n,1,False,[])
        return end,len(run(learn, 1, all_of_them()).recorder.values)
    moments = [o for o in event if o!='after_create' and 'cancel' not in o]
    ends = {o:broken(o) for o in moments}
    if exc is not CancelFitException: assert set(ends.values())=={(exc.__name__,1)}
    else: assert [o for o in moments if ends[o]!=('goes on',1)]==['after_fit','cleanup_fit'] # nothing is left to cancel there
