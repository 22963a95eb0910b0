"Hooks, summary, the loop as text, activation statistics, the timeline: scratchai.inside"
import io,os,sys,time
from contextlib import redirect_stdout
from collections import namedtuple
from dataclasses import dataclass

import pytest,torch,torch.nn as nn
from fastcore.all import L,NS,test_close as close
from scratchai.core import *
from scratchai.data import *
from scratchai.inside import *
from scratchai.layers import *
from scratchai.learner import *
from scratchai.loader import *
from scratchai.losses import *
from scratchai.module import *
from scratchai.recorder import *
from scratchai.schedule import *

def net(): return Sequential(Linear(1,8), ReLU(), Linear(8,1))
def quick(**kwargs):
    set_seed(7)
    return synth_learner(**{'model':net(), 'lr':0.05, **kwargs})
def run(learn, n=1, cbs=None):
    with learn.no_logging(): learn.fit(n, cbs=cbs)
    return learn

# Hooks

@pytest.mark.parametrize('m', [Linear(3,2),nn.Linear(3,2)])
def test_outputs_and_their_gradients(m):
    x = torch.randn(4, 3)
    with Hook(m, lambda m,i,o: (i,o)) as fwd, Hook(m, lambda m,i,g: g, is_forward=False) as bwd: (m(x)**2).sum().backward()
    assert torch.equal(fwd.stored[0][0], x) and not fwd.stored[1].requires_grad
    close(bwd.stored, 2*m(x).detach())
    old = fwd.stored
    m(x*100)
    assert fwd.stored is old # it was removed

def test_several_hooks():
    m = simple_cnn()
    with hook_outputs([m[6]], grad=True, cpu=True) as hooks: m(torch.randn(2,3,32,32)).sum().backward()
    assert torch.equal(hooks[0].stored, torch.ones(2,10)) and len(hooks)==1
    with hook_outputs([m[6]], detach=False) as hooks: m(torch.randn(2,3,32,32))
    assert hooks[0].stored.requires_grad
    with hook_output(m[4]) as one, hook_output(m[6], grad=True) as grad: m(torch.randn(2,3,32,32)).sum().backward()
    assert one.stored.shape==(2,128,1,1) and torch.equal(grad.stored, torch.ones(2,10)) and not m[4].__hooks__
    ref = nn.Sequential(nn.Linear(3,2), nn.ReLU())
    with hook_outputs(leaf_modules(ref)) as hooks: out = ref(torch.ones(1,3))
    assert torch.equal(hooks.stored[1], out.detach()) and not ref[0]._forward_hooks
    assert len(leaf_modules(m))==11 and len(leaf_modules(m, with_params=True))==5

def test_outputs_that_are_no_tensor():
    class Odd(Module):
        def forward(self, x): return dict(a=x, n=3, none=None)
    with Hook(m := Odd(), lambda m,i,o: o) as h, Hook(m, lambda m,i,g: g, is_forward=False) as g: m(torch.ones(2, requires_grad=True))
    assert not h.stored['a'].requires_grad and (h.stored['n'], h.stored['none'], g.stored)==(3,None,None)

# Callbacks with hooks

class MeanOut(HookCallback):
    def before_train(self): self.seen = []
    def hook(self, m, i, o): return o.mean().item()
    def after_batch(self):
        if self.live: self.seen.append(list(self.hooks.stored))
        super().after_batch()

def test_every_batch_or_some():
    run(quick(), 1, every := MeanOut())
    assert (len(every.seen), len(every.seen[0]), every.live)==(10,2,False)
    run(quick(), 1, some := MeanOut(every=4, include_paramless=True))
    assert (len(some.seen), len(some.seen[0]))==(3,3)

def test_hooks_are_off_after_an_error_and_in_validation():
    learn,cb,n = quick(),HookCallback(),[]
    def boom(self): raise OSError('boom')
    with pytest.raises(OSError): run(learn, 1, [cb,Callback(after_loss=boom)])
    assert (cb.live, cb.hooks[0].stored.shape)==(False,(16,8))
    run(learn, 1, HookCallback(learn.model[0], hook=lambda m,i,o: n.append(type(m).__name__)))
    assert n==['Linear']*10 # and not in the two batches of the validation
    with pytest.raises(OSError): run(quick(model=(m := nn.Sequential(nn.Linear(1,1)))), 1, [HookCallback(),Callback(after_pred=boom)])
    assert not m[0]._forward_hooks

def test_what_the_hooks_are_told():
    run(quick(), 1, keep := HookCallback(is_forward=False, cpu=True))
    assert keep.hooks[1].stored.shape==(16,1)
    run(quick(), 1, keep := HookCallback(detach=False))
    assert keep.hooks[1].stored.requires_grad

# Activation statistics

def test_numbers_are_those_of_the_outputs():
    run(quick(), 1, [stats := ActivationStats(with_hist=True, bins=20, top=2.), outs := HookCallback()])
    last = outs.hooks[0].stored
    close([o[-1] for o in stats.layer_stats(0)], [last.mean(), last.std(), (last.abs()<=0.05).float().mean()], 1e-6)
    close(stats.hist(0)[:,-1].expm1().sum(), (last.abs()<=2).sum())
    assert stats.hist(0).shape==(20,10) and stats.color_dim(0).get_xlim()==(0,10)
    assert [len(ax.lines[0].get_xdata()) for ax in stats.plot_layer_stats(1)]==[10]*3

def test_layers_that_did_not_run():
    class Detour(Sequential):
        def forward(self, x): return super().forward(x) if self.training and x.mean()>0 else self[2](torch.relu(self[1](x.expand(-1, 8))))
    def cancel(self):
        if self.training and self.iter in (0,3): raise CancelBatchException
    learn = run(quick(model=Detour(Linear(1,8), ReLU(), Linear(8,1))), 1, [stats := ActivationStats(with_hist=True), Callback(before_batch=cancel)])
    assert [len(o) for o in stats.layer_stats(0)]==[8]*3 # two batches were cancelled before any layer ran
    ran = [(x.mean()>0).item() for i,(x,_) in enumerate(learn.dls.train) if i not in (0,3)]
    assert set(ran)=={True,False} and [o==o for o in stats.layer_stats(0)[0]]==ran
    assert stats.hist(0).isfinite().all(0).tolist()==ran
    learn.add_cb(stats).validate()
    assert len(stats.layer_stats(1)[0])==8

@dataclass
class Out: a:torch.Tensor; n:int=1
Pair = namedtuple('Pair', 'n a')
@pytest.mark.parametrize('out', [lambda x: (x,1), lambda x: [[x]], lambda x: {'n':3, 'a':x}, lambda x: {'out':{'deep':[None,x]}}, Out, lambda x: Pair('n', x)])
def test_the_first_tensor_of_an_output_counts(out):
    class Odd(Module):
        def __init__(self): self.w,self.out = Parameter(torch.ones(1)),out
        def forward(self, x): return self.out(x*self.w)
    x = torch.ones(4,1)
    def loss(p, t): return learn.model.w.sum()
    learn = quick(model=Odd(), data=NS(train=[(x,x)], valid=[(x,x)]), loss_func=loss)
    run(learn, 1, stats := ActivationStats(with_hist=True))
    assert stats.layer_stats(0)[0]==[1.] and stats.hist(0).shape==(40,1)

@pytest.mark.parametrize('out', [None,{},(),'text',{'n':1},[None]])
def test_an_output_without_tensor_has_no_numbers(out):
    class Nothing(Module):
        def forward(self, x): return out
    class Both(Module):
        def __init__(self): self.side,self.main = Nothing(),Linear(1,1)
        def forward(self, x): return self.main(x) if self.side(x) is not self else None
    run(quick(model=Both()), 1, stats := ActivationStats(include_paramless=True))
    assert len(stats.layer_stats(0)[0])==10 and not any(o==o for o in stats.layer_stats(0)[0]) and all(o==o for o in stats.layer_stats(1)[0])

def test_asked_too_early():
    for n,o in ((0,ActivationStats(with_hist=True)),(None,ActivationStats(with_hist=True))):
        if n is not None: run(quick(), n, o)
        for f in (o.layer_stats,o.hist,o.color_dim,o.plot_layer_stats):
            with pytest.raises(ValueError, match='No batch was recorded yet'): f(0)
    run(quick(), 1, stats := ActivationStats(every=5))
    assert len(stats.stats)==2
    with pytest.raises(ValueError, match='with_hist=True'): stats.hist(0)

def test_a_search_is_not_watched():
    learn = run(quick(cbs=[stats := ActivationStats(with_hist=True), trace := TraceCallback(), hooks := HookCallback(detach=False)]), 1)
    old = list(stats.stats),list(trace.spans),hooks.hooks # tensors with a graph could not be copied
    assert not any(type(o).run_lr_find for o in (stats,trace,hooks))
    learn.lr_find(num_it=5, show_plot=False)
    assert [list(map(id, o)) for o in (stats.stats,trace.spans)]==[list(map(id, o)) for o in old[:2]] and hooks.hooks is old[2]

# Summary and loop

def test_summary_leaves_no_trace():
    m = nn.Sequential(nn.Sequential(), nn.Linear(1,1), nn.BatchNorm1d(1).eval())
    learn = Learner(synth_dls(), m, mse)
    rows = [o.split() for o in learn.summary().splitlines()]
    assert [o[0] for o in rows]==['layer','Sequential','Linear','BatchNorm1d','total'] and rows[-1][1:]==['4','4']
    assert ([o.training for o in m], m[2].num_batches_tracked.item(), len(m[1]._forward_hooks))==([True,True,False],0,0)
    learn.model[1].requires_grad_(False)
    assert learn.summary().splitlines()[-1].split()[1:]==['4','2']

@pytest.mark.parametrize('mk', [DataLoader,torch.utils.data.DataLoader])
def test_summary_leaves_the_order_alone(mk):
    def losses(summary):
        set_seed(3)
        xs = torch.randn(32, 1)
        kw = dict(n_workers=0) if mk is DataLoader else {}
        learn = synth_learner(data=NS(train=mk(list(zip(xs, 2*xs)), 8, shuffle=True, **kw), valid=[(xs,2*xs)]), model=nn.Sequential(nn.Dropout(), nn.Linear(1,1)))
        if summary: learn.summary()
        return run(learn, 2).recorder.losses
    assert losses(True)==losses(False)

def test_summary_of_several_inputs_and_none():
    class Two(Module):
        def __init__(self): self.l = Linear(1,1)
        def forward(self, x, y): return self.l(x+y),None
    x = torch.ones(4,1)
    learn = synth_learner(data=NS(train=[(x,x,x)], valid=[]), model=Two())
    assert '(4, 1)' in learn.summary() and repr(learn.summary())==learn.summary()
    with pytest.raises(ValueError, match='has no batches'): synth_learner(n_trn=0).summary()

def test_the_printed_loop_is_the_loop(capsys):
    log = []
    learn = quick(n_trn=1, n_val=1, cbs=Callback(**{o: lambda self, o=o: log.append(o) for o in event}))
    learn.show_training_loop()
    lines = capsys.readouterr().out.splitlines()
    run(learn)
    assert [o.split(':')[0].strip() for o in lines]==list(dict.fromkeys(log))[1:] # but for after_create
    assert 'before_fit: ' in lines[0] and all('Callback' in o for o in lines)
    depths = {o.split(':')[0].strip(): (len(o)-len(o.lstrip()))//4 for o in lines}
    assert [depths[f'before_{o}'] for o in ('fit','epoch','train','batch','step')]==[0,1,2,3,4]
    assert all(depths[o]==depths['before_'+o[6:]] for o in depths if o.startswith('after_') and 'before_'+o[6:] in depths)

# The timeline

class SlowData(list):
    def __iter__(self):
        for b in super().__iter__():
            time.sleep(0.004)
            yield b

def slow():
    learn = quick()
    learn.dls.loaders[0] = SlowData(learn.dls.train)
    cb = Callback(after_pred=lambda self: time.sleep(0.003), before_backward=lambda self: time.sleep(0.002))
    cb.order = -50
    return learn,cb

def test_parts_of_known_length():
    learn,cb = slow()
    run(learn, 2, [trace := TraceCallback(), cb])
    ms = {k:v/10*1000 for k,v in trace.totals().items()}
    assert ms['load']>4 and ms['forward']>3 and ms['backward']>2 and len(trace.spans)==10*5+2*3
    close(sum(trace.totals().values()), sum(o[3] for o in trace.spans), 1e-9)
    for training in (True,False): # each span begins where the one before has ended
        spans = [o for o in trace.spans if o[1]==training]
        close([t for *_,t,_ in spans[1:]], [t+secs for *_,t,secs in spans[:-1]], 1e-6)
    assert trace.plot(span=(0.01,0.02)).get_xlim()==(0.01,0.02)

def test_which_epoch():
    run(quick(), 2, first := TraceCallback(epoch=0, sync=False))
    assert (first.which, len(first.spans), first.on)==(0,56,False)
    run(learn := quick(), 2, never := TraceCallback(epoch=5))
    assert never.spans==[]
    learn.add_cb(first).validate()
    assert len(first.spans)==56

# The loaders

def said(dls):
    with redirect_stdout(io.StringIO()) as out: dls.summary()
    return out.getvalue()

def test_the_way_of_an_item(pictures):
    fns = get_image_files(pictures(dog=4, cat=4))
    only = L(ToFloat(), ToFloat())
    only[1].split_idx = 1 # would fail: a float picture is not `(bs, h, w, c)` any more
    out = said(DataLoaders(DataLoader(Dataset(fns), n_workers=0), [], batch_tfms=only, device='cpu'))
    assert out.count('ToFloat')==1 and out.splitlines()[0].startswith('file       …/') and 'Tensor 1x3x64x64 float32, 0 to ' in out
    dicts = [dict(x=torch.zeros(2,3), name='a', y=1)]*4
    out = said(DataLoaders(DataLoader(dicts, bs=2, n_workers=0), device='cpu'))
    assert out.splitlines()[0].startswith('item       {x: Tensor 2x3 float32, 0 to 0, name:')
    assert 'tensor([])' in said(DataLoaders(DataLoader([torch.zeros(0)], bs=1, n_workers=0), device='cpu'))

@pytest.mark.skipif(sys.platform!='linux', reason='names of files are text there')
def test_an_item_whose_name_is_not_utf8(pictures):
    d = pictures(dog=3, cat=3)/'dog'
    os.rename(d/'0.JPEG', os.fsencode(d)+b'/\xff.JPEG')
    assert said(DataLoaders(DataLoader(Dataset(get_image_files(d)), n_workers=0), [], batch_tfms=ToFloat(), device='cpu')).encode()

def test_summary_of_a_data_block(pictures, capsys):
    "From the first file through the transforms of the item and those of the training batch"
    from scratchai.block import ImageDataLoaders
    from scratchai.augment import aug_transforms
    dls = ImageDataLoaders.from_folder(pictures(train_cat=2, train_dog=2, valid_cat=1, valid_dog=1), size=16, bs=2, num_workers=0, device='cpu',
        batch_tfms=aug_transforms())
    dls.summary()
    out = [o.split()[0] for o in capsys.readouterr().out.splitlines()]
    assert out==['file','item','collate','IntToFloatTensor','AffineCoordTfm','LightingTfm']
