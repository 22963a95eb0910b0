"Resume: what a checkpoint holds, which runs may go on from it, and trainings that are killed at any moment"
import ctypes,json,math,os,random,shutil,signal,subprocess,sys,time
from functools import partial
from pathlib import Path

import numpy as np,pytest,torch
from safetensors.torch import save_file
from fastcore.all import L,noop,store_attr
from scratchai.core import *
from scratchai.files import *
from scratchai.loader import DataLoader
from scratchai.data import DataLoaders
from scratchai.module import *
from scratchai.layers import *
from scratchai.losses import *
from scratchai.optimizer import *
from scratchai.optimizers import *
from scratchai.learner import *
from scratchai.recorder import *
from scratchai.schedule import *
from scratchai.precision import *
from scratchai.transfer import *
from scratchai.inference import *
from scratchai.tracker import *
from scratchai.training import *
from scratchai.mixup import MixUp
from scratchai.augment import *
from scratchai.fused import *
from scratchai.resume import *

# The file

def test_state_round_trip(tmp_path):
    x = torch.randn(2, 3, 4, 5)
    state = dict(a=[1, 2.5, True, None, 'x', dict(b=x)], t=(x.half(), x.bfloat16()>0, x.bfloat16()), last=x.to(memory_format=torch.channels_last),
        turned=x.transpose(0, 1), scalar=torch.tensor(3), none=torch.zeros(0, 2), p=Parameter(x), same=x, rest=x[1:], inf=[math.inf, -math.inf], num=np.float32(0.5), i=np.int64(7), tiny=5e-324)
    res = load_state(save_state(tmp_path/'new'/'s.safetensors', state))
    def same(a, b): return a.dtype==b.dtype and a.equal(b) if isinstance(a, torch.Tensor) else [*a]==[*b] and all(map(same, a.values(), b.values())) if isinstance(a, dict) else \
        len(a)==len(b) and all(map(same, a, b)) if isinstance(a, (list,tuple)) else a==b
    assert same(state, res) and type(res['t']) is list and res['p'].requires_grad is False and type(res['num']) is float and type(res['i']) is int
    assert math.isnan(load_state(save_state(tmp_path/'s.safetensors', dict(a=math.nan)))['a'])
    assert [o.name for o in (tmp_path/'new').iterdir()]==['s.safetensors']

@pytest.mark.parametrize('bad, name', [(dict(a=dict(b=[1, object()])), '`a/b/1` is a object'), (dict(a={1:2}), '`a` is a dict'), (dict(cb=Path('x')), '`cb` is a')], ids=['object', 'keys', 'path'])
def test_state_refuses_what_it_would_change(tmp_path, bad, name):
    with pytest.raises(TypeError, match=name): save_state(tmp_path/'s.safetensors', bad)
    assert not [*tmp_path.iterdir()]

def test_damaged_files_are_named(tmp_path):
    whole = save_state(tmp_path/'whole.safetensors', dict(a=torch.ones(100))).read_bytes()
    (tmp_path/'plain.safetensors').write_bytes(b'')
    save_file(dict(a=torch.ones(2)), tmp_path/'weights.safetensors')
    save_file(dict(a=torch.ones(2)), tmp_path/'other.safetensors', metadata=dict(opt='{}'))
    for n in (0, 5, 100, len(whole)-1): (tmp_path/f'cut{n}.safetensors').write_bytes(whole[:n])
    for o in tmp_path.glob('[pwoc]*[0-9rsn].safetensors'):
        with pytest.raises(ValueError, match=f'{o.name} is damaged, or no checkpoint'): load_state(o)
    with pytest.raises(FileNotFoundError): load_state(tmp_path/'none.safetensors')

def test_generators():
    random.gauss(0, 1), np.random.randn(), torch.randn(3) # each keeps a second number for the next call
    def draw(): return [random.gauss(0, 1), random.random()], np.random.randn(3).tolist(), torch.randn(5).tolist(), torch.randperm(9).tolist()
    s = json.loads(json.dumps(rng_state(), default=lambda o: o.tolist()))
    s['torch'] = [torch.tensor(o, dtype=torch.uint8) for o in s['torch']]
    first_,_ = draw(),draw()
    set_rng_state(s)
    assert draw()==first_

# Trainings that end too early, and go on in another learner

class Killed(Exception): pass

class Kill(Callback):
    "Ends everything after `n` batches, later than anybody else"
    toward_end,order,run_lr_find = True,2000,False
    def __init__(self, n=-1, fit=0): store_attr() # so many batches, in fit number `fit`
    def after_batch(self):
        if self.training and (self.n_fits,self.train_iter)==(self.fit,self.n): raise Killed

class Noise(Callback):
    "Draws from all three generators"
    run_valid = False
    def before_batch(self): self.learn.xb = (self.xb[0]+0.1*torch.randn(len(self.x), 1)+random.random()/9+np.random.rand()/9,)

class Average(Callback):
    "A callback with a state of its own: a moving average of the weights"
    order,avg = 20,None
    def before_fit(self): self.avg = {n:p.detach().clone() for n,p in self.model.named_parameters()}
    def after_step(self):
        for n,p in self.model.named_parameters(): self.avg[n].lerp_(p.detach(), 0.1)
    def state_dict(self): return dict(avg=self.avg)
    def load_state_dict(self, state): self.avg = state['avg']

class Items:
    "Points in ten dimensions, each read with noise of its own"
    random = True
    def __init__(self, n=26): self.x,self.n = torch.randn(n, 10, generator=torch.Generator().manual_seed(1)),n
    def __len__(self): return self.n
    def __getitem__(self, i): return self.x[i]+0.1*torch.randn(10), (self.x[i].sum()>0).long()

def net(): return Sequential(Linear(10, 8), BatchNorm(8, ndim=1), ReLU(), Dropout(0.2), Linear(8, 2))
def two(m): return L(list(m[:2].parameters()), list(m[2:].parameters()))

@pytest.fixture
def make(tmp_path):
    "`make(kill=n)` makes a learner that dies after `n` batches; nothing in it is seeded alike"
    def _make(kill=-1, cbs=(), fit=0, n=26, bs=4, every=1, keep=2, valid=True, folder=None, quiet=True, **kwargs):
        kwargs = dict(opt_func=SGD, splitter=two, path=tmp_path, metrics=accuracy) | kwargs
        dls = DataLoaders(DataLoader(Items(n), bs, shuffle=True, n_workers=0), DataLoader(Items(10), 5, n_workers=0) if valid else [], device='cpu')
        learn = Learner(dls, kwargs.pop('model', None) or net(), cbs=[CheckpointCallback(folder, every, keep), Kill(kill, fit), *[o() if callable(o) and not isinstance(o, Callback) else o for o in cbs]], **kwargs)
        learn.bars = False
        if quiet: learn.logger = noop
        return learn
    return _make

def what(learn):
    "All that must be equal"
    rec,rows = learn.recorder,[{k:v for k,v in o.items() if k!='time'} for o in learn.history]
    opt = learn.opt.state_dict()
    state = {k: {n: v.tolist() if isinstance(v, torch.Tensor) else v for n,v in o.items()} for k,o in opt['state'].items()}
    return dict(weights={k:v.tolist() for k,v in learn.model.state_dict().items()}, rows=rows, losses=list(rec.losses), values=[list(o) for o in rec.values], iters=rec.iters, lrs=rec.lrs,
        group_lrs=rec.group_lrs, hps=rec.hps, state=state, hypers=[dict(o) for o in opt['hypers']], final=list(learn.final_record), modes=[m.training for m in learn.model.modules()],
        loaders=[o.state_dict() for o in learn.dls.loaders if isinstance(o, DataLoader)], rng=json.dumps(rng_state(), default=lambda o: o.tolist()), epoch=learn.epoch,
        cbs=[{k: v if k!='avg' else {n:p.tolist() for n,p in v.items()} for k,v in o.state_dict().items() if k not in ('secs','rows')} for o in learn.cbs if hasattr(type(o), 'state_dict') and type(o) is not Recorder])

def killed_and_resumed(make, tmp_path, fit, kills, seed=5, **kwargs):
    "What an uninterrupted run ends with, and, for each moment of the kill, a run that went on"
    def start(kill): # a checkpoint is there from the first batch on, so the second process may begin with other seeds
        shutil.rmtree(tmp_path/'models', ignore_errors=True)
        set_seed(seed)
        learn = make(kill, **kwargs)
        fit(learn)
        return learn
    whole = what(start(-1))
    for n in kills:
        with pytest.raises(Killed): start(n)
        set_seed(seed+n)
        learn = make(**kwargs)
        fit(learn, resume=True)
        for k,v in what(learn).items(): assert v==whole[k], f'{k} after a kill at batch {n}'
    return whole

once = dict(
    plain=(lambda o, **kw: o.fit(3, 0.1, **kw), {}),
    momentum=(lambda o, **kw: o.fit(3, slice(0.01, 0.1), wd=0.1, **kw), dict(opt_func=partial(SGD, mom=0.9))),
    one_cycle=(lambda o, **kw: o.fit_one_cycle(3, 0.1, **kw), dict(opt_func=Adam, cbs=[Noise])),
    flat_cos=(lambda o, **kw: o.fit_flat_cos(3, 0.1, **kw), dict(opt_func=ranger)),
    sgdr=(lambda o, **kw: o.fit_sgdr(2, 1, 0.1, **kw), dict(opt_func=RMSProp)),
    torch_adamw=(lambda o, **kw: o.fit_one_cycle(3, 0.1, **kw), dict(opt_func=partial(OptimWrapper, opt=torch.optim.AdamW))),
    every_1=(lambda o, **kw: o.fit_one_cycle(3, 0.1, **kw), dict(every=1, cbs=[Noise], keep=1)),
    drop_last_valid=(lambda o, **kw: o.fit(3, 0.1, **kw), dict(valid=False)),
    accumulation=(lambda o, **kw: o.fit(3, 0.1, **kw), dict(every=2, cbs=[lambda: GradientAccumulation(12), Noise], n=50)),
    mixed=(lambda o, **kw: o.fit(3, 0.1, **kw), dict(cbs=[lambda: MixUp(0.4), Average])),
    fp16=(lambda o, **kw: o.fit_one_cycle(3, 0.1, **kw), dict(cbs=[lambda: MixedPrecision(on_cpu=True, init_scale=2.**40, growth_interval=3)])),
    bf16=(lambda o, **kw: o.fit(3, 0.1, **kw), dict(cbs=[lambda: MixedPrecision('bf16')])),
    short=(lambda o, **kw: o.fit(3, 0.1, **kw), dict(cbs=[lambda: ShortEpochCallback(0.6)])),
)

@pytest.mark.parametrize('name', once)
def test_goes_on_exactly(make, tmp_path, name):
    fit,kwargs = once[name]
    kills = dict(every_1=(1,6,7,20), accumulation=(7,13,38), short=(4,6,11)).get(name, (5,7,13))
    whole = killed_and_resumed(make, tmp_path, fit, kills, **dict(every=3) | kwargs)
    if name=='fp16': assert whole['cbs'][0]['skipped']>0
    assert len(whole['rows'])==3

def test_trackers_go_on(make, tmp_path):
    "Patience, the best so far, and the table of rows"
    cbs = [lambda: SaveModelCallback(fname='best'), lambda: ReduceLROnPlateau(patience=1, min_delta=0.5), lambda: EarlyStoppingCallback(patience=4, min_delta=0.5), CSVLogger]
    whole = killed_and_resumed(make, tmp_path, lambda o, **kw: o.fit(9, 0.1, **kw), (7,16,28), cbs=cbs, every=3)
    assert len(whole['rows'])<9 and whole['group_lrs'][-1][-1]<0.1
    rows = (tmp_path/'history.csv').read_text().splitlines()
    assert len(rows)==1+len(whole['rows']) and [float(o.split(',')[1]) for o in rows[1:]]==[o['train_loss'] for o in whole['rows']]

def test_compiled_optimizer_goes_on(make, tmp_path):
    "The kernel works on what was loaded as on what it has made itself, in the memory order of channels-last too"
    def fit(o, **kw):
        o.create_opt()
        o.opt.compile()
        o.fit(3, 0.01, **kw)
    killed_and_resumed(make, tmp_path, fit, (8,), opt_func=Adam)
    p,q = [torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last).requires_grad_() for _ in range(2)]
    a,b = Adam([p], lr=0.1),Adam([q], lr=0.1)
    p.grad = torch.ones_like(p)
    a.step()
    b.load_state_dict(a.state_dict())
    assert b.state[q]['sqr_avg'].stride()==q.stride() and b.state[q]['sqr_avg'].equal(a.state[p]['sqr_avg'])

def test_fits_of_a_program_are_numbered(make, tmp_path):
    "`fine_tune` fits twice; what a program does between two fits sees what it saw the first time"
    between = []
    def program(o, **kw):
        o.fine_tune(2, 0.1, freeze_epochs=2, **kw)
        between.append(what(o)['weights'])
        o.fit(2, 0.01, wd=0.1, **kw)
    whole = killed_and_resumed(make, tmp_path, program, (3,), every=2)
    for fit,n in ((1,1), (1,9), (1,14), (2,1), (2,5)):
        shutil.rmtree(tmp_path/'models')
        set_seed(5)
        with pytest.raises(Killed): program(make(n, fit=fit, every=2))
        set_seed(99)
        program(learn := make(every=2), resume=True)
        res = what(learn)
        for k in whole: assert res[k]==whole[k], f'{k} after a kill in fit {fit} at {n}'
    assert all(o==between[0] for o in between) and len(whole['rows'])==6

# Which runs may go on

def pair(): return Sequential(Linear(10, 8), ReLU(), Linear(8, 2))
others = dict(
    epochs=(dict(), lambda o: o.fit(4, 0.1, resume=True), 'epochs is 4 here and 3 there'),
    rate=(dict(), lambda o: o.fit(3, 0.2, resume=True), r'learning rate is \[0.2, 0.2\] here and \[0.1, 0.1\] there'),
    decay=(dict(), lambda o: o.fit(3, 0.1, wd=0.3, resume=True), r'weight decay is \[0.3, 0.3\] here and'),
    size=(dict(bs=5), None, 'batches is 6 here and 7 there; batch size is 5 here and 4 there'),
    items=(dict(n=27), None, 'items is 27 here and 26 there'),
    optimizer=(dict(opt_func=Adam), None, 'optimizer is .*sqr_mom.* here and'),
    torchs=(dict(opt_func=partial(OptimWrapper, opt=torch.optim.SGD)), None, "optimizer is .*'SGD'.* here and .*'Optimizer'.* there"),
    loss=(dict(loss_func=mse), None, 'loss is mse here and cross_entropy there'),
    groups=(dict(splitter=trainable_params), None, r'learning rate is \[0.1\] here and \[0.1, 0.1\] there'),
    callbacks=(dict(cbs=[GradientClip]), None, r'callbacks is .*GradientClip.* here and'),
    layers=(dict(model=pair), None, '`2.weight` is .* here and missing there; .*; `1.weight` is missing here and .*, and 6 more'),
    frozen=(dict(), lambda o: [o.freeze(), o.fit(3, 0.1, resume=True)], '`0.weight` is .*float32 here and .*float32, trained there'),
    double=(dict(), lambda o: [o.model.to(torch.float64), o.fit(3, 0.1, resume=True)], '`0.weight` is .*float64, trained here'),
)

@pytest.mark.parametrize('name', others)
def test_another_run_is_refused(make, name):
    kwargs,fit,match = others[name]
    with pytest.raises(Killed): make(9).fit(3, 0.1)
    if 'model' in kwargs: kwargs = dict(model=kwargs['model']())
    learn = make(**kwargs)
    before = [o.clone() for o in learn.model.parameters()]
    with pytest.raises(ValueError, match=f'fit0-batch0000009.safetensors belongs to another run: .*{match}'): (fit or (lambda o: o.fit(3, 0.1, resume=True)))(learn)
    assert all(a.double().equal(b.double()) for a,b in zip(before, learn.model.parameters())) and not learn.history
    assert len(learn.checkpoint.files())==2 and learn.checkpoint.state is None and not learn.busy

def test_classes_are_facts(make):
    learn = make()
    learn.dls.vocab = ['cat','dog']
    learn.n_epoch = 3
    learn.create_opt()
    here = run_facts(learn)
    learn.dls.vocab = ['cat','emu']
    assert fact_differences(here, run_facts(learn))==["classes is ['cat', 'dog'] here and ['cat', 'emu'] there"]
    assert fact_differences(here, here)==[] and len(fact_differences(dict(a='x'*1000), dict(b='y'))[0])<150

def test_another_machine_is_warned_of(make):
    with pytest.raises(Killed): make(9).fit(3, 0.1)
    n = torch.get_num_threads()
    torch.set_num_threads(n+1)
    try:
        with pytest.warns(UserWarning, match=f'threads is {n+1} here and {n} there: the last bits'): make().fit(3, 0.1, resume=True)
    finally: torch.set_num_threads(n)

def test_a_damaged_latest_is_named_and_the_one_before_counts_without_it(make):
    with pytest.raises(Killed): make(9).fit(3, 0.1)
    last = max(make().checkpoint.files().items())[1]
    last.write_bytes(last.read_bytes()[:2000])
    with pytest.raises(ValueError, match='fit0-batch0000009.safetensors is damaged, or no checkpoint; without it, the one before counts'): make().fit(3, 0.1, resume=True)
    last.unlink()
    learn = make()
    learn.fit(3, 0.1, resume=True)
    assert len(learn.history)==3 and len(learn.recorder.losses)==21

# Beginning, ending, keeping

def test_resume_needs_a_callback(make):
    learn = make()
    learn.remove_cb(CheckpointCallback)
    with pytest.raises(ValueError, match='needs a `CheckpointCallback`'): learn.fit(1, resume=True)
    learn.fit(1)

def test_without_a_checkpoint_it_begins(make, capsys):
    learn = make(quiet=False)
    learn.fit(2, 0.1, resume=True)
    out = capsys.readouterr().out
    assert f'There is no checkpoint in {learn.checkpoint.where} yet: this fit starts at its beginning.' in out and len(learn.history)==2
    make(quiet=False).fit(2, 0.1, resume=True)
    assert 'This fit had ended after batch 14, from ' in capsys.readouterr().out
    shutil.rmtree(learn.checkpoint.where)
    with pytest.raises(Killed): make(9).fit(2, 0.1)
    make(quiet=False).fit(2, 0.1, resume=True)
    assert 'Training goes on in epoch 1, after batch 9, from ' in capsys.readouterr().out

def test_a_fit_that_had_ended_trains_no_more(make):
    learn = make()
    learn.fit(2, 0.1)
    again = make()
    again.fit(2, 0.1, resume=True)
    assert what(again)==what(learn) | dict(rng=what(again)['rng']) and again.n_fits==1

def test_interrupted_in_a_notebook(make):
    "The same learner goes on, as long as its fit has not ended"
    set_seed(3)
    learn = make(9)
    with pytest.raises(Killed): learn.fit(3, 0.1)
    learn.kill.n = -1
    learn.fit(3, 0.1, resume=True)
    set_seed(3)
    whole = make()
    whole.fit(3, 0.1)
    assert what(whole)==what(learn) | dict(cbs=what(whole)['cbs']) and (learn.n_fits,whole.n_fits)==(1,1)

def test_a_new_run_says_that_it_replaces_checkpoints(make, recwarn):
    with pytest.raises(Killed): make(9).fit(3, 0.1)
    learn = make(5, every=3)
    recwarn.clear()
    with pytest.raises(Killed): learn.fit(3, 0.1)
    assert 'are of an earlier run and will be replaced' in str(recwarn[0].message) and list(learn.checkpoint.files())==[(0,3)]
    learn = make()
    learn.fit(1, 0.1)
    recwarn.clear()
    learn.fit(1, 0.1)
    assert not recwarn and sorted(learn.checkpoint.files())==[(0,6), (0,7), (1,6), (1,7)]
    make(every=None).fit(1, 0.1)
    assert sorted(learn.checkpoint.files())==[(0,7)]

def test_what_a_resumed_fit_leaves_alone(make):
    "Checkpoints of later fits stay where an earlier one is gone through again"
    learn = make(cbs=[lambda: StopAfterNBatches(9)])
    learn.fit(3, 0.1), learn.fit(3, 0.1)
    files = sorted(learn.checkpoint.files())
    again = make(cbs=[lambda: StopAfterNBatches(9)])
    again.fit(3, 0.1, resume=True)
    assert sorted(again.checkpoint.files())==files and what(again)['weights']!=what(learn)['weights']
    again.fit(3, 0.1, resume=True)
    assert what(again)['weights']==what(learn)['weights'] and (again.n_fits,again.train_iter)==(2,9)

@pytest.mark.parametrize('every, keep, there', [(1,2,[20,21]), (1,4,[18,19,20,21]), (5,2,[20,21]), (5,9,[5,10,15,20,21]), (8,3,[8,16,21]), (100,2,[21]), (None,2,[14,21]), (None,9,[7,14,21])])
def test_every_and_keep(make, every, keep, there):
    learn = make(every=every, keep=keep)
    learn.fit(3, 0.1)
    assert [n for _,n in sorted(learn.checkpoint.files())]==there

@pytest.mark.parametrize('kwargs', [dict(every=0), dict(keep=0)], ids=['every', 'keep'])
def test_at_least_one(kwargs):
    with pytest.raises(ValueError, match='`every` and `keep` are at least 1'): CheckpointCallback(**kwargs)

def test_folder(make, tmp_path):
    mine = tmp_path/'models'/'checkpoints'
    mine.mkdir(parents=True)
    (mine/'fit-notes.txt').write_text('mine')
    (mine/'.fit0-batch0000001.safetensors-0123abcd.part').mkdir()
    (mine/'.fit0-batch0000001.safetensors-0123abcd.part/.tmpa1b2c3').write_text('of a process that was killed')
    make().fit(1, 0.1)
    assert sorted(o.name for o in mine.iterdir())==['fit-notes.txt', 'fit0-batch0000006.safetensors', 'fit0-batch0000007.safetensors']
    make(folder='here').fit(1, 0.1), make(folder=tmp_path/'there').fit(1, 0.1)
    assert len(list((tmp_path/'here').iterdir()))==len(list((tmp_path/'there').iterdir()))==2

def test_only_fits_write(make):
    learn = make()
    learn.validate(), learn.get_preds(), learn.lr_find(show_plot=False, num_it=5), learn.get_preds(0)
    assert not learn.checkpoint.where.exists() and learn.n_fits==0

def test_gradients_that_wait_are_not_cut_off(make):
    learn = make(every=1, keep=99, cbs=[lambda: GradientAccumulation(12)])
    learn.fit(2, 0.1)
    assert [n for _,n in sorted(learn.checkpoint.files())]==[3,6,7,10,13,14]

@pytest.mark.parametrize('kind', ['list', 'torch', 'train_metrics'])
def test_what_cannot_say_where_it_is_is_saved_between_epochs(make, kind, tmp_path):
    def start(kill=-1, seed=1, **kw):
        set_seed(seed)
        learn = make(kill, every=2, keep=99, cbs=[Noise])
        items = [Items()[i] for i in range(26)]
        if kind=='torch': learn.dls = DataLoaders(torch.utils.data.DataLoader(items, 4, shuffle=True), [], device='cpu')
        if kind=='list': learn.dls = DataLoaders([tuple(map(torch.stack, zip(*items[i:i+4]))) for i in range(0, 26, 4)], [], device='cpu')
        if kind=='train_metrics': learn.recorder.train_metrics = True
        learn.fit(3, 0.1, **kw)
        return learn
    whole = start()
    assert [n for _,n in sorted(whole.checkpoint.files())]==[7,14,21]
    if kind=='list': return # its items were drawn by the seed
    shutil.rmtree(tmp_path/'models')
    with pytest.raises(Killed): start(17)
    if kind=='torch': torch.manual_seed(1)
    other = start(seed=1 if kind=='torch' else 7, resume=True)
    assert what(other)==what(whole) | dict(rng=what(other)['rng'])

def test_record_keeps_its_time(make):
    "The seconds before the kill count"
    with pytest.raises(Killed): make(6, cbs=[lambda: Callback(before_train=lambda self: setattr(self.recorder, 'start', time.time()-100))]).fit(1, 0.1)
    learn = make(cbs=[Callback()])
    learn.fit(1, 0.1, resume=True)
    assert 100<=learn.history[0]['time']<120

def test_saved_models_hold_no_state_of_a_fit(make):
    "`learn.load` brings weights back, and neither the record nor what trackers have seen"
    learn = make(cbs=[SaveModelCallback, lambda: MixedPrecision(on_cpu=True)])
    learn.fit(2, 0.1)
    learn.save('m')
    losses = list(learn.recorder.losses)
    learn.fit(1, 0.1)
    learn.load('m')
    assert len(learn.recorder.losses)==7 and learn.recorder.losses!=losses and learn.save_model.best<math.inf

def test_a_full_disk_ends_in_its_own_words(make, monkeypatch):
    learn = make()
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('scratchai.resume.save_file', full)
    with pytest.raises(OSError, match='No space left') as e: learn.fit(1, 0.1)
    assert 'in the callback `CheckpointCallback` at `after_batch`' in e.value.__notes__[0] and not list(learn.checkpoint.where.iterdir())

# Killed while it writes

def stops(pid):
    "Let the child `pid` run from system call to system call: a number for each time that one begins or ends"
    libc,n = ctypes.CDLL(None, use_errno=True),0
    while True:
        if libc.ptrace(24, pid, None, None): raise OSError(ctypes.get_errno(), 'ptrace')
        if not os.WIFSTOPPED(os.waitpid(pid, 0)[1]): return
        yield (n := n+1)

def killed_at(n, f):
    "Run `f` in a child that is killed as its `n`-th system call begins or ends; how many there were"
    if not (pid := os.fork()):
        ctypes.CDLL(None).ptrace(0, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        try: f()
        finally: os._exit(0)
    os.waitpid(pid, 0)
    for i in stops(pid):
        if i!=n: continue
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return i
    return i

@pytest.mark.slow
@pytest.mark.skipif(sys.platform!='linux', reason='follows system calls as Linux can')
def test_killed_at_each_system_call_of_a_save(make, tmp_path):
    "The latest checkpoint is there, whole, and the one before or the new one"
    seen,partial_,whole = [],0,{}
    class Try(Callback):
        toward_end,order = True,3000
        def after_epoch(self):
            nonlocal partial_
            if self.epoch<2: return
            cb,n = self.checkpoint,0
            old = cb.where
            ends = {o: load_state(f)['train_iter'] for o,f in cb.files().items()}
            assert ends=={(0,14):14, (0,21):21}
            self.learn.train_iter = 28 # the next one
            while True:
                cb.folder,n = tmp_path/f'{n}',n+1
                shutil.copytree(old, cb.where)
                made,cb.made = cb.made,[cb.where/o.name for o in cb.made]
                there = killed_at(n, lambda: cb.save(3))
                cb.made,last = made,max(cb.files())
                assert last in ((0,21),(0,28)) and load_state(cb.files()[last])['train_iter']==last[1]
                assert len(cb.files())>=2
                partial_ += any(o.suffix=='.part' for o in cb.where.iterdir())
                seen.append(last[1])
                cb.made = [o for _,o in sorted(cb.files().items())]
                if n%10==0: # what a killed process has left is cleared away by the next that saves
                    cb.save(3)
                    assert len(list(cb.where.iterdir()))==2
                shutil.rmtree(cb.where)
                if there<n: break
            cb.folder = old
    try: killed_at(0, noop)
    except OSError as e: pytest.skip(f'this system lets nobody follow a process: {e}')
    make(every=None, cbs=[Try]).fit(3, 0.1)
    n = seen.index(28)
    assert set(seen[:n])=={21} and set(seen[n:])=={28} and n>20 and len(seen)>n+5 and partial_>10

# Real processes, killed at random moments

program = """
import sys,torch
from pathlib import Path
from PIL import Image
from scratchai.all import *
from scratchai.resume import *

root = Path(sys.argv[1])
for i in range(60):
    (root/'pictures'/'ab'[i%2]).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(i).randint(255, size=(20,24,3), dtype=np.uint8)).save(root/'pictures'/'ab'[i%2]/f'{i}.png')

def train(to, seed, **kwargs):
    torch.set_num_threads(1)
    set_seed(seed)
    dls = ImageDataLoaders.from_folder(root/'pictures', valid_pct=0.2, seed=1, item_tfms=RandomResizedCrop(16), batch_tfms=aug_transforms(), bs=3, num_workers=2)
    model = Sequential(ConvLayer(3, 8), Dropout(0.3), AdaptivePool(), Flatten(), Linear(8, 2))
    learn = Learner(dls, model, metrics=accuracy, path=to, cbs=[MixUp, CSVLogger, CheckpointCallback(every=3)])
    learn.bars,learn.logger = False,noop
    learn.fit_one_cycle(2, 1e-2, **kwargs)
    rows = [{k:v for k,v in o.items() if k!='time'} for o in learn.history]
    save_state(to/'end.safetensors', dict(model=learn.model.state_dict(), rows=rows, losses=learn.recorder.losses, lrs=learn.lrs, rng=rng_state()))
    dls.close()
"""

def end(folder):
    s = load_state(folder/'end.safetensors')
    return {k: {n:v.tolist() for n,v in o.items()} if k=='model' else [o.tolist() for o in o['torch']]+[o['python'], o['numpy']] if k=='rng' else o for k,o in s.items()}

many = """
import os,random,signal,time
def child(*args, **kwargs):
    if pid := os.fork(): return pid
    try: train(*args, **kwargs)
    except BaseException as e: os.write(2, repr(e).encode()), os._exit(1)
    os._exit(0)
def ends(pid): assert os.waitpid(pid, 0)[1]==0
ends(child(root/'first', 0)) # as the first one starts more slowly
rng,began = random.Random(0),time.time()
ends(child(root/'whole', 0))
secs = time.time()-began
for i in range(20):
    to = root/f'{i}'
    pid = child(to, 0)
    time.sleep(rng.uniform(0.2, 0.9)*secs)
    os.kill(pid, signal.SIGKILL)
    died = os.waitpid(pid, 0)[1]==signal.SIGKILL
    there = sorted(o.name for o in to.glob('models/checkpoints/fit0-batch*[0-9].safetensors'))
    print(i, died, there, flush=True)
    ends(child(to, 99 if there else 0, resume=True))
"""

@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='forks')
def test_twenty_kills_at_random_moments(tmp_path):
    "Two workers, augmentation in workers and on batches, mixup: each goes on in another process and ends with the same bits"
    (tmp_path/'many.py').write_text(program+many)
    r = subprocess.run([sys.executable, str(tmp_path/'many.py'), str(tmp_path)], capture_output=True, text=True, timeout=500)
    assert r.returncode==0, r.stderr[-3000:]
    whole = end(tmp_path/'whole')
    lines = [o for o in r.stdout.splitlines() if ' True ' in o]
    assert len(lines)>=15 and sum('[]' not in o for o in lines)>=10, r.stdout
    for i in range(20):
        assert end(tmp_path/f'{i}')==whole, f'run {i}'
        rows = [o.read_text().splitlines() for o in (tmp_path/f'{i}'/'history.csv', tmp_path/'whole'/'history.csv')]
        assert [o.rpartition(',')[0] for o in rows[0]]==[o.rpartition(',')[0] for o in rows[1]]
