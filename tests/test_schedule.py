"Schedules, the learning-rate finder, and what it may not leave behind: scratchai.schedule"
import gc,math,os,pickle,random,subprocess,sys,warnings,weakref
from contextlib import suppress

import matplotlib.pyplot as plt,numpy as np,pytest,torch
from fastcore.all import L,NS,noop,partial
from fastcore.test import test_close as close
from scratchai.core import *
from scratchai.data import *
from scratchai.layers import *
from scratchai.learner import *
from scratchai.losses import *
from scratchai.module import *
from scratchai.optimizer import *
from scratchai.optimizers import OptimWrapper
from scratchai.recorder import *
from scratchai.schedule import *

def quiet(learn, meth='fit', *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): getattr(learn, meth)(*args, **kwargs)
    return learn
def halves(m): return L([m.a],[m.b])
def wrapped(name, **kwargs): return partial(OptimWrapper, opt=getattr(torch.optim, name), **kwargs)
def raising(e):
    def _raise(*args): raise e
    return _raise

# Schedules

def test_formulas():
    assert [f(1., 100., 0.5) for f in (sched_lin,sched_no)]==[50.5,1.]
    close([sched_cos(1., 100., 0.25), sched_exp(1., 100., 0.5), sched_poly(1., 0., 2, 0.5)], [1+99*(1-0.5**0.5)/2, 10., 0.75])
    close(sched_lin(np.array([0.,1.]), np.array([1.,5.]), 0.25), np.array([0.25,2.]))
    for f in (SchedLin,SchedCos,SchedExp,partial(SchedPoly, power=3)): close([f(2., 0.1)(0), f(2., 0.1)(1)], [2.,0.1])
    assert SchedNo(3,5)(1)==3 and SchedExp(end=100., start=1.)(0.5)==10. and SchedPoly(1., 0., 1)(0.3)==SchedLin(1., 0.)(0.3)
    for ends in ((-1.,1.),(0.,1.)):
        with pytest.raises(ValueError, match='of the same sign'): SchedExp(*ends)(0.5)
    f = pickle.loads(pickle.dumps(combine_scheds([0.5,0.5], [SchedLin(1,5), SchedCos(5,1)])))
    assert f(0.25)==3
    assert annealer(lambda s,e,p: s+p**3*(e-s))(0., 8.)(0.5)==1.

def test_combining():
    tenths = combine_scheds([0.1]*10, [SchedNo(i,i) for i in range(10)])
    assert [tenths(k/10) for k in range(11)]==[0,1,2,3,4,5,6,7,8,9,9]
    assert combine_scheds([0.08,0.57,0.35], [SchedNo(i,i) for i in range(3)])(0.65)==2
    for pcts,pos,want in (([0,1],0.,2.), ([1,0],1.,4.)): assert combine_scheds(pcts, [SchedNo(1,1), SchedLin(2,4)])(pos)==want
    assert combine_scheds(torch.tensor([0.25,0.75]), [SchedLin(0,1),SchedLin(1,0)])(0.25)==1.
    f = combined_cos(0.25, 0.04, 1., 1e-5)
    close([f(0.), f(0.25), f(1.)], [0.04,1.,1e-5])
    for pcts,n in (([0.5,0.6],2), ([1.],2), ([-0.5,1.5],2), ([],0)):
        with pytest.raises(ValueError, match='none negative, that sum to 1'): combine_scheds(pcts, [SchedNo(1,1)]*n)

def test_drawing():
    ax = plot_sched(dict(a=SchedLin(2.,0.1), b=SchedNo(2.,0.1)))
    assert len(ax.lines)==2 and ax.get_legend()
    assert plot_sched([SchedNo(1,1)], n=11, lw=3, ax=ax) is ax and len(ax.lines[-1].get_xdata())==11 and ax.lines[-1].get_linewidth()==3
    assert not plot_sched(SchedNo(1,1)).get_legend()
    two = quiet(synth_learner(splitter=halves), 'fit_one_cycle', 1, slice(0.01, 0.1))
    axs = two.recorder.plot_sched()
    assert [len(ax.lines) for ax in axs]==[2,2]
    close(axs[0].lines[1].get_ydata(), [o[1] for o in two.recorder.hps['lr']])
    ax, = two.recorder.plot_sched('mom', figsize=(2,1))
    assert ax.get_ylabel()=='mom' and ax.figure.get_size_inches().tolist()==[2.,1.]
    assert len(quiet(two, 'fit', 1, slice(0.01, 0.1)).recorder.plot_sched()[0].lines)==2 # the rate is there without a schedule
    assert quiet(synth_learner(lr=0.3), 'fit', 1).recorder.plot_sched()[0].lines[0].get_ydata()[0]==0.3

@pytest.mark.parametrize('name,kwargs,f', [('LinearLR',dict(start_factor=0.2, end_factor=1., total_iters=84),SchedLin(0.2,1.)),
    ('CosineAnnealingLR',dict(T_max=84),SchedCos(1.,0.)), ('ExponentialLR',dict(gamma=0.01**(1/84)),SchedExp(1.,0.01)),
    ('PolynomialLR',dict(total_iters=84, power=2),lambda p: SchedPoly(0.,1.,2)(1-p)),
    ('CosineAnnealingWarmRestarts',dict(T_0=12, T_mult=2),combine_scheds([1/7,2/7,4/7], [SchedCos(1.,0.)]*3)),
    ('OneCycleLR',dict(max_lr=1., total_steps=84, pct_start=0.25, div_factor=25., final_div_factor=1e5/25, cycle_momentum=False),None)])
def test_agreement_with_torch(name, kwargs, f):
    opt,lrs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.),[]
    sched = getattr(torch.optim.lr_scheduler, name)(opt, **kwargs)
    for _ in range(84):
        lrs.append(opt.param_groups[0]['lr'])
        opt.step()
        sched.step()
    if f: return close(lrs, [f(i/84) for i in range(84)], 1e-12)
    cycle = combined_cos(0.25, 1/25, 1., 1e-5)
    theirs = [0.25*k/20 if k<=20 else 0.25+0.75*(k-20)/63 for k in range(84)]
    close(lrs, [cycle(p) for p in theirs], 1e-12)
    assert max(abs(a-cycle(k/84)) for k,a in enumerate(lrs))<np.pi/2/21 # one step apart

# Schedules in training

@pytest.mark.parametrize('opt_func', [None,wrapped('AdamW', betas=(0.9,0.98)),wrapped('SGD', momentum=0.9),wrapped('RMSprop', momentum=0.5)])
@pytest.mark.parametrize('groups', [1,2])
def test_one_cycle_equals_its_formula(opt_func, groups):
    kw = {**(dict(opt_func=opt_func) if opt_func else {}), **(dict(splitter=halves) if groups==2 else {})}
    class Reads(Callback):
        def after_step(self): seen.append([h['lr'] for h in self.opt.hypers])
    seen,learn = [],synth_learner(**kw)
    learn.create_opt()
    was = [h['mom'] for h in learn.opt.hypers]
    quiet(learn, 'fit_one_cycle', 3, slice(0.01,0.1) if groups==2 else 0.1, pct_start=0.4, div=10., div_final=1e3, moms=(0.9,0.7,0.8), cbs=Reads)
    for g,peak in enumerate([0.01,0.1][-groups:]):
        hps = {k: [o[g] if groups==2 else o for o in v] for k,v in learn.recorder.hps.items()}
        close(hps['lr'], [combined_cos(0.4, peak/10, peak, peak/1e3)(i/30) for i in range(30)])
        close([o[g] for o in seen], hps['lr'])
        close(hps['mom'], [combined_cos(0.4, 0.9, 0.7, 0.8)(i/30) for i in range(30)])
    assert [h['mom'] for h in learn.opt.hypers]==was # put back
    if opt_func and 'AdamW' in str(opt_func): assert learn.opt.opt.param_groups[0]['betas'][1]==0.98

@pytest.mark.parametrize('opt_func', [SGD,wrapped('SGD'),wrapped('Adagrad')])
def test_without_momentum_only_the_rate_is_scheduled(opt_func):
    assert list(quiet(synth_learner(opt_func=opt_func), 'fit_one_cycle', 1, 0.1).recorder.hps)==['lr']

class CutFirst(Callback):
    def after_batch(self):
        if self.training and self.epoch==0 and self.iter==2: raise CancelTrainException

def test_an_epoch_cut_short_and_one_left_out():
    learn = quiet(synth_learner(opt_func=SGD), 'fit_one_cycle', 2, 0.1, cbs=CutFirst())
    close(learn.recorder.hps['lr'][3], combined_cos(0.25, 0.1/25, 0.1, 0.1/1e5)(0.5))
    for meth,args,total in (('fit_one_cycle',(4,),4), ('fit_flat_cos',(4,),4), ('fit_sgdr',(2,1),3)):
        learn = quiet(synth_learner(lr=0.05), 'fit', 1)
        opt = learn.opt
        n_cbs = len(learn.cbs)
        quiet(learn, meth, *args, start_epoch=2, wd=0.3, cbs=CutFirst())
        assert len(learn.recorder.hps['lr'])==(total-2)*10
        assert (learn.opt is opt, learn.opt.hypers[0]['wd'], len(learn.cbs))==(True,0.3,n_cbs)
        quiet(learn, meth, *args, reset_opt=True)
        assert learn.opt is not opt
        close(max(learn.recorder.hps['lr']), 0.05, 1e-3)

def test_flat_cos_and_restarts():
    hps = quiet(synth_learner(), 'fit_flat_cos', 4, 0.2, 10., 0.5).recorder.hps
    close(hps['lr'], [combined_cos(0.5, 0.2, 0.2, 0.02)(i/40) for i in range(40)])
    assert set(hps['lr'][:20])=={0.2} and list(hps)==['lr']
    hps = quiet(synth_learner(), 'fit_sgdr', 3, 1, 0.1).recorder.hps
    close(hps['lr'], [combine_scheds([1/7,2/7,4/7], [SchedCos(0.1,0.)]*3)(i/70) for i in range(70)])
    assert (np.diff(hps['lr'])>0).sum()==2
    close(quiet(synth_learner(), 'fit_sgdr', 2, 1, 0.1, cycle_mult=1).recorder.hps['lr'][10], 0.1)
    assert len(quiet(synth_learner(), 'fit_sgdr', 2, 2, 0.1, cycle_mult=3).recorder.hps['lr'])==80
    for args in ((0,1),(1,0),(2,1,0.1,0),(2,1,0.1,1.5)):
        with pytest.raises(ValueError, match='at least one cycle, and a whole number'): quiet(synth_learner(), 'fit_sgdr', *args)

def test_the_callbacks_alone():
    for cb,first in ((OneCycle(0.1, moms=None),0.1/25), (FlatCos(0.1, 10., 0.5),0.1), (SGDR([1,1], 0.1),0.1)):
        hps = quiet(synth_learner(lr=3.), 'fit', 1, cbs=cb).recorder.hps
        close(hps['lr'][0], first)
        assert list(hps)==['lr']
    close(quiet(synth_learner(moms=(0.8,0.6,0.8)), 'fit_one_cycle', 2).recorder.hps['mom'][0], 0.8)
    close(quiet(synth_learner(), 'fit', 1, cbs=ParamScheduler(dict(lr=SchedExp(0.1,0.001)))).recorder.hps['lr'], [SchedExp(0.1,0.001)(i/10) for i in range(10)])
    close(quiet(synth_learner(opt_func=wrapped('Adam')), 'fit', 1, cbs=ParamScheduler(dict(sqr_mom=SchedLin(0.9,0.99)))).recorder.hps['sqr_mom'][5], 0.945)
    both = quiet(synth_learner(splitter=halves), 'fit', 1, cbs=[ParamScheduler(dict(lr=SchedNo(.1,.1))), ParamScheduler(dict(mom=[SchedNo(.5,.5), SchedNo(.6,.6)]))])
    assert (both.recorder.hps['lr'][-1], both.recorder.hps['mom'][-1])==([.1,.1],[.5,.6])
    assert set(quiet(both, 'fit', 1, cbs=ParamScheduler(dict(lr=SchedNo(.1,.1)))).recorder.hps)=={'lr'}
    quiet(synth_learner(default_cbs=False), 'fit_one_cycle', 1) # no recorder, nobody who counts

@pytest.mark.parametrize('exc', [CancelFitException,ValueError])
def test_hypers_are_put_back_in_mid_cycle(exc):
    def fail(self):
        if self.train_iter==7: raise exc('there')
    learn = synth_learner(splitter=halves)
    learn.create_opt()
    learn.opt.set_hyper('mom', [0.7,0.8])
    with suppress(ValueError): quiet(learn, 'fit_one_cycle', 2, 0.1, cbs=Callback(after_step=fail))
    assert learn.recorder.hps['mom'][-1]!=[0.7,0.8] and [h['mom'] for h in learn.opt.hypers]==[0.7,0.8]

def test_a_validation_is_no_training():
    for cb in (OneCycle(), FlatCos(), SGDR([1]), ParamScheduler(dict(lr=SchedNo(1.,1.)))):
        assert len(synth_learner(cbs=cb).validate())==1 # there is not even an optimizer
        learn = quiet(synth_learner(lr=0.2), 'fit', 1, cbs=OneCycle())
        old = str((learn.opt.hypers, learn.recorder.hps))
        learn.validate(cbs=cb)
        assert str((learn.opt.hypers, learn.recorder.hps))==old

def test_wrong_schedules():
    learn = quiet(synth_learner(), 'fit', 1)
    bad = [ParamScheduler(dict(mom=SchedNo(0.1,0.1))), ParamScheduler(dict(momm=SchedNo(0.9,0.9)))]
    with pytest.raises(KeyError, match='has no \'momm\' to schedule'): quiet(learn, 'fit', 1, cbs=bad)
    assert learn.opt.hypers[0]['mom']==0.9
    with pytest.raises(TypeError, match='is no function of `pos`: 0.1'): quiet(learn, 'fit', 1, cbs=ParamScheduler(dict(lr=0.1)))
    with pytest.raises(ValueError, match='2 values'): quiet(learn, 'fit', 1, cbs=ParamScheduler(dict(lr=[SchedNo(1.,1.)]*2)))
    with pytest.raises(ValueError, match='`moms` are three'): quiet(synth_learner(moms=(0.9,0.8)), 'fit_one_cycle', 1)

# The rules

lrs = torch.logspace(-6, 0, 61, dtype=torch.float64)
losses = torch.where(lrs.log10()<-4, 1., torch.where(lrs.log10()<=-1, 1-(lrs.log10()+4)/4, 0.25+4*(lrs.log10()+1)))

def test_rules_on_a_curve_of_which_we_know_the_answers():
    found = {f.__name__:f(lrs, losses, 61) for f in (valley,minimum,steep,slide)}
    close([found['minimum'][0], found['minimum'][1][0], found['valley'][0]], [1e-2,1e-1,10**-2.6], 1e-6)
    assert 1e-4 <= found['steep'][0] <= 1e-1
    for rate,pt in found.values(): assert min(abs(lrs-pt[0]))<1e-9 and pt[1] in losses.tolist() or rate==found['slide'][0]
    three = torch.tensor([1e-3,1e-2,1e-1]),torch.tensor([3.,2.,1.])
    close(slide(*three, 3, adjust_value=0.5)[0], 0.5*slide(*three, 3)[0])
    close(slide(lrs, losses, 61, lr_diff=5, thresh=10.)[0], lrs[55].item())
    close(slide(lrs, losses, 61, thresh=10.)[0], lrs[45].item())
    for f in (valley,steep,slide): close(f(torch.tensor([0.1]), torch.tensor([1.]), 1)[0], 0.1)

# The finder

def find(learn=None, **kwargs): return (learn or synth_learner()).lr_find(show_plot=False, **kwargs)

def test_what_comes_back():
    res = synth_learner().lr_find(suggest_funcs=('valley','minimum','steep','slide'))
    assert res._fields==('valley','minimum','steep','slide') and res.valley==res[0]
    assert [o.get_label().split()[0] for o in plt.gca().lines[1:]]==list(res._fields) # the marks
    ax = res.finder.plot(res.finder.suggest('minimum'), skip_end=0)
    assert len(ax.lines[0].get_xdata())==len(res.finder.rates) and ax.lines[1].get_label()[:7]=='minimum'
    close(res.minimum, res.finder.rates[int(np.argmin(res.finder.losses[:-5]))]/10)
    plt.close('all')
    none = find(suggest_funcs=None)
    assert (len(none), len(none.finder.rates)>10, plt.get_fignums())==(0,True,[])
    own = find(suggest_funcs=[SuggestionMethod.Steep, partial(slide, lr_diff=5), lambda lrs,losses,n: (float(n),(1.,1.))], num_it=30)
    assert own._fields==('steep','slide','_2') and own[2]==30.

def test_where_it_stops():
    assert {k: len(find(start_lr=1e-4, end_lr=1e3, num_it=60, stop_div=k).finder.losses)<60 for k in (True,False)}=={True:True,False:False}
    def nan_loss(pred, targ): return (pred-targ).mean()*math.nan
    def log_density(pred, targ): return -10 - torch.exp(-(pred-targ)**2).mean()
    with pytest.raises(ValueError, match='1 losses and none is finite'): find(synth_learner(loss_func=nan_loss))
    assert len(find(synth_learner(loss_func=log_density), start_lr=1e-5, end_lr=1e-2, num_it=35).finder.rates)==35 # negative losses

def test_groups_and_no_validation():
    seen = []
    cb = Callback(after_batch=lambda self: seen.append(self.training))
    res = find(synth_learner(splitter=halves, cbs=cb), start_lr=[1e-4,1e-3], end_lr=slice(0.01,0.1), num_it=25) # more than two epochs
    close(res.finder.rates, [1e-3*100**(i/25) for i in range(25)])
    assert seen==[True]*25

def test_wrong_searches():
    with pytest.raises(AttributeError, match='Peak'): find(suggest_funcs='peak')
    for kw in (dict(num_it=0), dict(start_lr=1., end_lr=0.1), dict(start_lr=0., end_lr=0.1)):
        with pytest.raises(ValueError, match='Rates grow from above 0 in at least one batch'): find(**kw)
    for ev in ('before_fit','before_batch','after_batch'):
        with pytest.raises(ValueError, match='0 losses'): find(synth_learner(cbs=Callback(**{ev:raising(CancelFitException())})))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises(ValueError, match='0 losses'): find(synth_learner(data=NS(train=[], valid=[])))

def test_a_search_with_groups():
    "Each group has its own rates, and a curve; the suggestion is the last group's"
    two = synth_learner(splitter=halves)
    for start,end in (([1e-7,1e-5],[1e-1,10.]), (np.array([1e-7,1e-5]),np.array([1e-1,10.])), (slice(1e-7,1e-5),slice(1e-1,10.))):
        res = two.lr_find(start, end, num_it=30, stop_div=False)
        lo,hi = np.array(res.finder.group_rates).T
        close(hi/lo, np.full(30, 100.))
        close([lo[0],hi[0]], [1e-7,1e-5], eps=1e-12)
        assert list(hi)==res.finder.rates and res.valley in res.finder.rates
        lines = plt.gca().lines
        assert [o.get_label() for o in lines]==['group 0','group 1',f'valley {res.valley:.2g}'] and plt.gca().get_legend()
        for o,rs in zip(lines, (lo,hi)): close(o.get_xdata(), rs[:25])
        close(lines[0].get_ydata(), lines[1].get_ydata())
        plt.close('all')
    two.lr_find(num_it=30, suggest_funcs=None)
    assert len(plt.gca().lines)==1 and not plt.gca().get_legend() # the same rates for both: one curve

def test_run_lr_find():
    class Skipped(Callback):
        run_lr_find = False
        def __init__(self): self.file,self.seen = open(os.devnull),0
        def before_fit(self): self.seen += 1
    cb = Skipped()
    learn = synth_learner(cbs=cb)
    before = list(learn.cbs)
    find(learn, num_it=5)
    assert cb.seen==0 and cb.learn is learn and list(learn.cbs)==before
    cb.file.close()

def test_it_prints_nothing(capsys):
    learn = quiet(synth_learner(), 'fit', 1)
    find(learn)
    assert capsys.readouterr().out==''
    learn.fit(1)
    assert 'train_loss' in capsys.readouterr().out

# No trace

class Fussy(Callback):
    "Counts batches, draws random numbers and, in a search, fails at the sixth"
    def __init__(self, fail=noop): self.count,self.log,self.fail = 0,[],fail
    def after_loss(self):
        self.count += 1
        self.log.append(random.random()+np.random.rand())
        if hasattr(self.learn, 'lr_finder') and len(self.lr_finder.losses)==5: self.fail()

def fussy(fail=noop, opt_func=Adam):
    "A learner that has trained before; its loader shuffles, its model has dropout, averages and a buffer of its own"
    set_seed(3)
    xs = torch.randn(256, 3, 8, 8)
    dl = DataLoader(list(zip(xs, xs.mean((1,2,3)).gt(0).long())), bs=16, shuffle=True, n_workers=0)
    model = Sequential(ConvLayer(3, 8), Dropout(0.3), AdaptivePool(), Flatten(), Linear(8, 2))
    dls = DataLoaders(dl, [(xs[:16], torch.ones(16).long())], device='cpu')
    return quiet(Learner(dls, model, cross_entropy, opt_func, metrics=accuracy, cbs=Fussy(fail)), 'fit', 1)

def everything(learn):
    st = [dict(learn.opt.state[p]) for p in learn.model.parameters()]
    return str([[*learn.model.state_dict().values()], st, [dict(h) for h in learn.opt.hypers], [m.training for m in learn.model.modules()],
        random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), learn.history, learn.recorder.losses, learn.cbs,
        learn.fussy.count, learn.fussy.log, learn.dls.train.epoch, learn.dls.train.seed, learn.dls.train.position, [p.grad is None for p in learn.model.parameters()]])

ways = {'its own end':dict(end_lr=1e-3), 'divergence':dict(end_lr=1e8), 'cancel':CancelFitException(), 'error':OSError('disk'), 'Ctrl-C':KeyboardInterrupt()}
@pytest.mark.parametrize('opt_func', [Adam,wrapped('AdamW'),wrapped('SGD', momentum=0.9)])
def test_find_then_fit_is_bitwise_fit(opt_func):
    ref = quiet(fussy(opt_func=opt_func), 'fit', 1)
    want = [*map(torch.clone, ref.model.state_dict().values()), torch.rand(1)]
    for way in ways.values():
        learn = fussy(raising(way) if isinstance(way, BaseException) else noop, opt_func)
        old = everything(learn)
        with suppress(OSError, KeyboardInterrupt): find(learn, **(way if isinstance(way, dict) else {}))
        assert everything(learn)==old
        quiet(learn, 'fit', 1)
        assert all(map(torch.equal, [*learn.model.state_dict().values(), torch.rand(1)], want)), way
        assert learn.history[-1]['valid_loss']==ref.history[-1]['valid_loss']

@pytest.mark.parametrize('method', ['fit','fit_one_cycle'])
@pytest.mark.parametrize('opt_func', [Adam,wrapped('AdamW')])
def test_before_the_first_fit(opt_func, method):
    def run(search):
        set_seed(3)
        xs = torch.randn(64, 1)
        dl = DataLoader(list(zip(xs, 2*xs+3)), bs=8, shuffle=True, n_workers=0)
        learn = Learner(NS(train=dl, valid=[(xs,2*xs+3)]), Sequential(Linear(1,16), BatchNorm(16), Dropout(0.5), Linear(16,1)), mse, opt_func)
        if search: find(learn)
        assert learn.opt is None
        return str([*quiet(learn, method, 2, 0.01).model.state_dict().values(), learn.recorder.losses, torch.get_rng_state().tolist()])
    assert run(True)==run(False)

@pytest.mark.parametrize('own', [False,True])
def test_torchs_loader(own):
    def run(search):
        set_seed(3)
        xs = torch.randn(64, 1)
        ds = torch.utils.data.TensorDataset(xs, 2*xs+3)
        dl = torch.utils.data.DataLoader(ds, 8, shuffle=True, generator=torch.Generator().manual_seed(1) if own else None)
        learn = synth_learner(data=NS(train=dl, valid=[(xs,2*xs+3)]), lr=0.05)
        assert learn.twin().dls.train.dataset is ds
        if search: find(learn)
        return quiet(learn, 'fit', 2).recorder.losses
    assert run(True)==run(False)

@pytest.mark.parametrize('pos', [0,3,8])
def test_an_epoch_under_way(pos):
    def run(n):
        set_seed(3)
        xs = torch.randn(64, 1)
        dl = DataLoader(list(zip(xs, 2*xs+3)), bs=8, shuffle=True, n_workers=0)
        it = iter(dl)
        for _ in range(pos): next(it)
        learn = synth_learner(data=NS(train=dl, valid=[]))
        if n: find(learn, num_it=n, stop_div=False)
        return dl.epoch,dl.position,quiet(learn, 'fit', 2).recorder.losses
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        want = run(0)
        for n in (5,8,16): assert run(n)==want

@pytest.mark.slow
def test_workers_of_a_twin_end(pictures):
    from conftest import children,until
    path,before = pictures(train_cat=8, train_dog=8, val_cat=3, val_dog=3),set(children()) # torch.compile's helpers
    def run(search):
        set_seed(3)
        with folder_dls(path, size=16, bs=4, n_workers=1, device='cpu') as dls:
            learn = Learner(dls, simple_cnn(2), metrics=accuracy)
            if search: find(learn, num_it=8)
            until(lambda: set(children())<=before, 20)
            return quiet(learn, 'fit', 1).recorder.losses
    assert run(True)==run(False)
    until(lambda: set(children())<=before, 20)

# Twins

def test_a_twin_is_apart_and_whole():
    learn = quiet(synth_learner(metrics=mse), 'fit', 1)
    twin = learn.twin()
    assert twin.opt.param_lists[0][0] is twin.model.a and twin.model.a is not learn.model.a
    assert {id(p) for p in twin.opt.state}=={id(p) for p in twin.model.parameters()}
    assert all(o.learn is twin for o in twin.cbs) and all(o.learn is learn for o in learn.cbs)
    assert twin.recorder is not learn.recorder and twin.metrics[0] is not learn.metrics[0]
    assert twin.dls is not learn.dls and twin.dls.train is learn.dls.train # lists of batches are shared
    quiet(twin, 'fit', 1)
    assert (len(learn.history), len(twin.history))==(1,2)
    quiet(learn, 'fit', 1)
    assert learn.model.a.item()==twin.model.a.item()
    wrap = quiet(synth_learner(opt_func=wrapped('Adam')), 'fit', 1)
    twin = wrap.twin()
    assert twin.opt.opt.param_groups[0]['params'][0] is twin.model.a and {id(p) for p in twin.opt.opt.state}=={id(p) for p in twin.model.parameters()}

def test_helpers_are_copied_too():
    class Helper:
        def __init__(self): self.n,self.gen,self.arr = 0,torch.Generator().manual_seed(1),np.zeros(4)
        def count(self):
            self.n += 1
            self.arr += torch.rand(1, generator=self.gen).item()
    class EmaLoss(Helper):
        def __call__(self, pred, targ): return self.count() or mse(pred, targ)
    class Model(RegModel):
        def __init__(self):
            super().__init__()
            self.helper = Helper()
            self.register_forward_hook(self.watch)
        def watch(self, m, i, o): self.helper.count()
        def forward(self, x): return self.helper.count() or super().forward(x)
    class Helped(Callback):
        def __init__(self): self.helper,self.late = Helper(),partial(Helper.count, Helper())
        def after_batch(self): self.helper.count(), self.late()
    for wrap in (lambda o: o, partial, lambda o: o.__call__):
        loss = EmaLoss()
        learn = synth_learner(model=Model(), loss_func=wrap(loss), cbs=Helped)
        def traces(): return [(o.n, o.arr.tolist(), o.gen.get_state().tolist()) for o in (loss, learn.model.helper, learn.helped.helper, learn.helped.late.args[0])]
        old = traces()
        find(learn, num_it=15)
        assert traces()==old
        quiet(learn, 'fit', 1)
        assert all(a!=b for a,b in zip(old, traces()))

def test_a_callback_that_another_learner_has_too():
    cb = Callback(after_batch=lambda self: seen.append(self.model))
    class NoCopy(RegModel):
        def __deepcopy__(self, memo): raise ValueError('no')
    one,two,seen = synth_learner(cbs=cb),synth_learner(cbs=cb, model=NoCopy()),[]
    find(one, num_it=5)
    assert len(seen)==5 and not any(o in (one.model, two.model) for o in seen)

def test_what_cannot_be_copied_is_named():
    class Log(Callback):
        def __init__(self): self.file = open(os.devnull)
    log = Log()
    with pytest.raises(TypeError, match='the callback `Log` of the learner cannot be copied.*run_lr_find'): find(synth_learner(cbs=log))
    log.file.close()
    with pytest.raises(TypeError, match='the attribute `dls` of the learner cannot be copied'): find(synth_learner(data=NS(train=(o for o in [1]), valid=[])))
    class Model(RegModel):
        def __init__(self):
            super().__init__()
            self.kept = self.a*2 # has a graph
    learn = synth_learner(model=Model())
    was = len(learn.cbs)
    with pytest.raises(TypeError, match='the attribute `model` of the learner cannot be copied'): find(learn)
    assert len(learn.cbs)==was and quiet(learn, 'fit', 1).history

def test_a_search_inside_a_fit_is_refused():
    learn = synth_learner(cbs=Callback(after_epoch=lambda self: self.learn.lr_find()))
    with pytest.raises(RuntimeError, match='is at work'): quiet(learn, 'fit', 1)

def test_nothing_of_the_twin_is_kept():
    learn,refs = synth_learner(),[]
    learn.add_cb(Callback(before_fit=lambda self: refs.append(weakref.ref(self.model))))
    gc.collect()
    gc.disable()
    try: res = find(learn)
    finally: gc.enable()
    assert res.finder.learn is None and refs[0]() is None

def test_ctrl_c_in_a_search():
    src = '''
import signal
from scratchai.schedule import *
from scratchai.learner import *
signal.signal(signal.SIGINT, signal.default_int_handler)
class Press(Callback):
    def after_loss(self):
        if len(self.learn.lr_finder.losses)==5: signal.raise_signal(signal.SIGINT)
learn = synth_learner(cbs=Press())
w,cbs = learn.model.a.item(),list(learn.cbs)
try: learn.lr_find(show_plot=False)
except KeyboardInterrupt: print(learn.model.a.item()==w, learn.opt, list(learn.cbs)==cbs, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
'''
    out = subprocess.run([sys.executable, '-c', src], capture_output=True, text=True, timeout=120)
    assert out.stdout.split()==['True','None','True','True'], out.stderr

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_search_that_is_the_first_to_use_the_gpu():
    src = '''
import sys,torch
from fastcore.all import NS
from scratchai.core import *
from scratchai.layers import *
from scratchai.learner import *
from scratchai.losses import mse
from scratchai.module import *
from scratchai.schedule import *
set_seed(3)
xs = torch.randn(64, 1)
data = NS(train=[(xs,2*xs+3)]*8, valid=[], device=torch.device('cuda'))
learn = synth_learner(data=data, model=Sequential(Linear(1,16), Dropout(0.5), Linear(16,1)))
if sys.argv[1]=='True': learn.lr_find(show_plot=False)
with learn.no_logging(): learn.fit(2)
print([p.tolist() for p in learn.model.parameters()], torch.cuda.get_rng_state().sum().item())
'''
    out = [subprocess.run([sys.executable, '-c', src, str(o)], capture_output=True, text=True, timeout=300) for o in (True,False)]
    assert out[0].stdout==out[1].stdout!='', out[0].stderr+out[1].stderr
