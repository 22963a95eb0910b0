"Mixed precision, channels-last, compile: scratchai.precision"
import copy,itertools,warnings

import pytest,torch,torch.nn as nn,torch.nn.functional as F
from fastcore.all import L,NS,noop,partial,test_close as close
from scratchai.core import *
from scratchai.layers import *
from scratchai.learner import *
from scratchai.losses import accuracy
from scratchai.module import *
from scratchai.optimizer import *
from scratchai.optimizers import OptimWrapper
from scratchai.precision import *
from scratchai.recorder import *
from scratchai.schedule import *
from scratchai.training import *
import scratchai.tracker # adds `save` and `load`

class Tiny(Module):
    "A network for points of 6 numbers"
    def __init__(self, n=3): self.a,self.b = Linear(6, 16),Linear(16, n)
    def forward(self, x): return self.b(F.relu(self.a(x)))

def data(n=64, bs=8):
    set_seed(1)
    x,y = torch.randn(n, 6),torch.randint(3, (n,))
    return NS(train=list(zip(x.split(bs), y.split(bs))), valid=[(x[:bs],y[:bs])])

def learner(cbs=None, model=None, bs=8, opt_func=partial(SGD, mom=0.9), **kwargs):
    set_seed(2)
    learn = Learner(data(bs=bs), model or Tiny(), opt_func=opt_func, cbs=cbs, **{'lr':0.05, **kwargs})
    learn.logger = noop
    return learn
def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])
fp16 = partial(MixedPrecision, on_cpu=True)

class Spy(Callback):
    "What `f` says at an event"
    order = 20
    def __init__(self, event, f):
        self.seen = []
        setattr(self, event, lambda: self.seen.append(f(self.learn)))

# The factor

def scaler_run(ours, theirs, grads):
    "Both scalers over the same gradients: factors and gradients"
    p,q = [torch.ones(3).requires_grad_() for _ in range(2)]
    opt = torch.optim.SGD([q], lr=0.)
    for g in grads:
        p.grad,q.grad = None,None
        ours.scale((p*g).sum()).backward()
        theirs.scale((q*g).sum()).backward()
        ok = ours.unscale_([p])
        ours.update(ok)
        theirs.unscale_(opt)
        theirs.step(opt)
        theirs.update()
        assert ok==bool(g.isfinite().all())
        yield (p.grad,ours.factor),(q.grad,theirs.get_scale())

@pytest.mark.parametrize('kw', [{}, dict(init_scale=2.**10), dict(init_scale=3.), dict(growth_factor=4.), dict(backoff_factor=0.25), dict(growth_interval=2)])
def test_the_factor_is_that_of_torchs_scaler(kw):
    set_seed(5)
    kw = {'growth_interval':4, **kw}
    bad = torch.tensor([float('inf'), float('-inf'), float('nan')])
    grads = [torch.tensor([1., 2., bad[i%3] if torch.rand(1)<0.2 else i]) for i in range(50)]
    ours = LossScaler(**kw)
    for (g,a),(h,b) in scaler_run(ours, torch.amp.GradScaler('cpu', **kw), grads):
        assert torch.equal(g, h) if g.isfinite().all() else torch.equal(g.isnan(), h.isnan())
        close(a, b, 1e-6*a)
    assert ours.skipped==sum(not g.isfinite().all() for g in grads)>3

@pytest.mark.parametrize('kw', [dict(init_scale=0), dict(init_scale=-1.), dict(growth_factor=0.5), dict(backoff_factor=1.), dict(backoff_factor=0.), dict(growth_interval=0)])
def test_an_impossible_factor_is_refused(kw):
    with pytest.raises(ValueError, match='`init_scale` is positive'): LossScaler(**kw)
    with pytest.raises(ValueError, match='`init_scale` is positive'): learner().to_fp16(**kw)

def test_the_factor_stays_a_number_of_float32():
    s = LossScaler(2.**126, growth_interval=1)
    for _ in range(5): s.update(True)
    assert s.factor==2.**127 and torch.tensor(s.factor).isfinite()

def test_what_has_no_gradient_is_left_out():
    p,q,r = torch.ones(2).requires_grad_(),torch.ones(2).requires_grad_(),torch.zeros(0).requires_grad_()
    p.grad,r.grad = torch.full((2,), 8.),torch.zeros(0)
    assert LossScaler(4.).unscale_(o for o in (p,q,r)) and p.grad.tolist()==[2.,2.] and q.grad is None
    assert LossScaler().unscale_([q, r]) and LossScaler().unscale_([])

def test_a_loss_of_16_bits_is_scaled_in_32():
    assert LossScaler().scale(torch.tensor(3., dtype=torch.float16)).item()==3*2.**16

def test_no_factor_helps_against_nan():
    learn = learner(fp16(), lr=0.1)
    with torch.no_grad(): learn.model.a.weight[0,0] = float('nan')
    with pytest.raises(FloatingPointError, match='not finite, even with the loss scaled by .*to_bf16'): learn.fit(9)
    assert 'forward' not in vars(learn.model)

def test_the_state_of_the_factor_goes_on():
    a,b = LossScaler(growth_interval=3),LossScaler(growth_interval=3)
    for ok in (True, False, True, True): a.update(ok)
    b.load_state_dict(a.state_dict())
    for s in (a, b): s.update(True)
    assert (a.factor, a.good, a.skipped)==(b.factor, b.good, b.skipped)==(2.**16, 0, 1)

# to_float

def test_everything_with_a_point_becomes_float32():
    t,n = torch.ones(2),torch.tensor([1])
    a,(b,c),d = to_float([t.half(), (t.bfloat16(), n), {'k':t.double(), 's':'text'}])
    assert a.dtype==b.dtype==d['k'].dtype==torch.float32 and c is n and d['s']=='text'

# Around the model

def test_the_model_runs_in_16_bits_and_what_it_returns_has_32():
    for learn,kind in ((learner(fp16()), torch.float16), (learner().to_bf16(), torch.bfloat16)):
        kinds = []
        handle = learn.model.a.register_forward_hook(lambda m, i, o: kinds.append(o.dtype))
        learn.add_cb(Callback(after_pred=lambda self: kinds.append(self.pred.dtype)))
        learn.fit(1)
        handle.remove()
        assert len(kinds)==2*9 and set(kinds[::2])=={kind} and set(kinds[1::2])=={torch.float32} # validation too

def test_a_nest_of_outputs_is_float32():
    class Two(Tiny):
        def forward(self, x): return super().forward(x),[x.half()]
    learn = learner(fp16(), Two(), loss_func=lambda pred, y: F.cross_entropy(pred[0], y))
    learn.add_cb(spy:=Spy('after_pred', lambda o: (o.pred[0].dtype, o.pred[1][0].dtype)))
    learn.fit(1)
    assert set(spy.seen)=={(torch.float32, torch.float32)}

def test_autocast_is_nowhere_else():
    at = ('before_batch','after_pred','after_loss','before_backward','before_step','after_batch')
    for order in (-5, 20):
        spies = [Spy(o, lambda _: (torch.ones(1,1)@torch.ones(1,1)).dtype) for o in at]
        for o in spies: o.order = order
        learner([fp16(), *spies]).fit(1)
        assert all(set(o.seen)=={torch.float32} for o in spies)

@pytest.mark.parametrize('where', ['before_batch','after_pred','after_loss','before_step','after_batch','before_validate'])
@pytest.mark.parametrize('exc', [CancelFitException, CancelEpochException, CancelBatchException, ZeroDivisionError, KeyboardInterrupt])
def test_whatever_ends_a_fit_the_model_is_itself_again(where, exc):
    def leave(self): raise exc
    learn = learner([fp16(), Callback(**{where:leave})], default_cbs=False)
    try: learn.fit(1)
    except (ZeroDivisionError, KeyboardInterrupt, CancelBatchException): pass
    assert 'forward' not in vars(learn.model) and not torch.is_autocast_enabled('cpu')
    assert learn.model(torch.ones(1, 6)).dtype==torch.float32

def test_a_copy_made_in_a_fit_computes_with_its_own_weights():
    learn = learner(fp16())
    def copied(o):
        m = copy.deepcopy(o.model)
        for p in m.parameters(): p.data.zero_()
        return m(torch.ones(1, 6)).abs().sum().item(),o.model(torch.ones(1, 6)).abs().sum().item()>0
    learn.add_cb(spy:=Spy('after_batch', copied))
    learn.fit(1)
    assert set(spy.seen)=={(0., True)}

def test_any_model_of_torch():
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    learn = learner(fp16(), model)
    with learn.no_logging(): learn.fit(3)
    assert learn.recorder.losses[-1]<learn.recorder.losses[0] and 'forward' not in vars(model)

def test_a_forward_of_the_users_own_comes_back():
    model = Tiny()
    own = model.forward = lambda x: Tiny.forward(model, x)*2
    learn = learner(fp16(), model)
    learn.add_cb(spy:=Spy('after_pred', lambda o: torch.allclose(o.pred, own(*o.xb), atol=0.05)))
    learn.fit(1)
    assert model.forward is own and all(spy.seen)

def test_a_model_without_parameters_can_be_validated():
    class First(Module):
        def forward(self, x): return x[:,:3]
    assert learner(model=First()).to_bf16().validate()==learner(model=First()).validate()

# Training

@pytest.mark.parametrize('opt_func', [partial(SGD, mom=0.9), Adam, partial(OptimWrapper, opt=torch.optim.SGD)])
@pytest.mark.parametrize('mode', ['fp16','bf16'])
def test_losses_are_nearly_those_of_float32(opt_func, mode):
    a,b = learner(opt_func=opt_func),learner(MixedPrecision(mode, on_cpu=True), opt_func=opt_func)
    for o in (a, b): o.fit(3)
    close(torch.tensor(a.recorder.losses), torch.tensor(b.recorder.losses), 0.02)
    assert all(p.dtype==torch.float32 for p in b.model.parameters())

def test_the_recorded_loss_is_without_the_factor():
    for cbs in ([], [GradientAccumulation(16)], [GradientAccumulation(16), GradientClip(0.1)]):
        a,b = learner(cbs=cbs, lr=0.),learner([fp16(), *copy.deepcopy(cbs)], lr=0.)
        for o in (a, b): o.fit(1)
        close(torch.tensor(a.recorder.losses), torch.tensor(b.recorder.losses), 1e-2)

def test_what_is_small_in_16_bits_is_trained_with_a_factor_only():
    "A loss times 1e-7, a rate times 1e7"
    def moved(init_scale):
        learn = learner(fp16(init_scale=init_scale), loss_func=lambda p, y: F.cross_entropy(p, y)*1e-7, opt_func=SGD)
        old = weights(learn)
        learn.fit(1, lr=1e5)
        return (weights(learn)-old).abs().max().item()
    ref = learner(loss_func=F.cross_entropy, opt_func=SGD)
    old = weights(ref)
    ref.fit(1, lr=1e-2)
    want = (weights(ref)-old).abs().max().item()
    assert moved(1.)<0.5*want and abs(moved(2.**16)-want)<0.05*want

def test_any_order_of_adding_gives_the_same_training():
    "Backward, accumulate, divide, clip, step"
    def run(make):
        learn = learner([f() for f in make])
        learn.fit(2)
        return weights(learn),learn.gradient_clip.norm
    parts = [partial(GradientAccumulation, 20),fp16,partial(GradientClip, 0.05)]
    res = [run(o) for o in itertools.permutations(parts)]
    assert all(torch.equal(w, res[0][0]) for w,_ in res)
    w,norm = run([parts[0],parts[2]]) # in float32
    close(w, res[0][0], 1e-3)
    close(norm, res[0][1], 0.02*norm.item())

def test_pieces_of_the_optimizer_see_gradients_in_float32_without_the_factor():
    seen = []
    def look(p, **kwargs): seen.append((p.grad.dtype, p.grad.abs().max().item()))
    def opt(params, lr): return Optimizer(params, [look, sgd_step], lr=lr)
    learner(fp16(), opt_func=opt).fit(1)
    assert len(seen)==4*8 and {o for o,_ in seen}=={torch.float32} and max(o for _,o in seen)<10

def test_parameters_of_the_loss_are_divided_too():
    class Loss(Module):
        def __init__(self): self.s = Parameter(torch.ones(1))
        def __call__(self, pred, y): return F.cross_entropy(pred*self.s, y)
    loss = Loss()
    learn = learner(fp16(), loss_func=loss, splitter=lambda m: m.parameters()+loss.parameters())
    learn.fit(1)
    assert 0<(loss.s-1).abs().item()<1

# Skipped steps

class Overflow(Callback):
    "Infinite gradients in the batches `at`"
    order = 5
    def __init__(self, *at): self.at = at
    def before_step(self):
        if self.train_iter in self.at: self.model.a.weight.grad[0,0] = float('inf')

def test_a_skipped_step_leaves_weights_and_state_alone_and_is_counted():
    learn = learner([fp16(), Overflow(0, 3)])
    learn.add_cb(before:=Spy('before_backward', weights))
    learn.fit(1)
    w,cb = before.seen,learn.mixed_precision
    same = [torch.equal(a, b) for a,b in zip(w, w[1:])]
    assert same==[True, False, False, True, False, False, False]
    assert (cb.skipped, cb.scaler.factor)==(2, 2.**14)

def test_a_skipped_step_takes_no_place_in_the_schedule():
    def places(*at, n=3):
        learn = learner([fp16(), Overflow(*at)])
        learn.add_cb(spy:=Spy('before_batch', lambda o: o.pct_train if o.training else None))
        learn.fit_one_cycle(n, 0.01)
        return [o for o in spy.seen if o is not None],learn
    plain,learn = places()
    close(plain, [i/24 for i in range(24)])
    got,learn = places(0, 1, 9)
    assert learn.mixed_precision.skipped==3
    close(got[:3], [0., 0., 0.])
    close(got[9:11], [7/22, 7/21]) # the tenth batch is skipped, and the next one stands where it stood
    close(got[-1], 20/21)
    assert got==sorted(got)
    whole,_ = places(0, n=3)
    close(whole[1:], [i/23 for i in range(23)])

def test_when_nothing_is_ever_stepped_the_rate_stays():
    learn = learner(fp16(init_scale=2.**60))
    learn.fit_one_cycle(2, 0.01)
    assert learn.mixed_precision.skipped==16 and len(set(learn.lrs))==1

def test_a_skipped_window_is_lost_whole():
    learn = learner([fp16(), GradientAccumulation(16), Overflow(1)])
    learn.add_cb(spy:=Spy('before_batch', lambda o: o.pct_train))
    learn.fit(1)
    assert learn.mixed_precision.skipped==1
    close(spy.seen[2:4], [0., 1/6])

def test_a_second_fit_begins_with_an_unshifted_schedule():
    learn = learner([fp16(), Overflow(0)])
    learn.fit(1)
    learn.remove_cb(Overflow)
    learn.add_cb(spy:=Spy('before_batch', lambda o: o.pct_train))
    learn.fit(1)
    close(spy.seen[:8], [i/8 for i in range(8)])

# From fit to fit, and saved

def test_the_factor_stays_from_fit_to_fit():
    learn = learner(fp16(init_scale=2.**8, growth_interval=6))
    learn.fit(1)
    assert (learn.mixed_precision.scaler.factor, learn.mixed_precision.scaler.good)==(2.**9, 2)
    learn.validate()
    learn.fit(1)
    assert (learn.mixed_precision.scaler.factor, learn.mixed_precision.scaler.good)==(2.**10, 4)

def test_the_callbacks_state_is_the_factors():
    a,b = learner(fp16(init_scale=2.**8, growth_interval=6)),learner(fp16(init_scale=2.**8, growth_interval=6))
    a.fit(1)
    b.mixed_precision.load_state_dict(a.mixed_precision.state_dict())
    b.fit(1)
    assert b.mixed_precision.scaler.factor==2.**10
    assert MixedPrecision('bf16').state_dict()=={} and MixedPrecision('bf16').load_state_dict({}) is None
    c = learner([fp16(), Overflow(0, 2)])
    c.fit(1)
    d = fp16()
    d.load_state_dict(c.mixed_precision.state_dict())
    assert (d.skipped, d.lost, d.scaler.factor)==(2, 2, 2.**14)

def test_what_is_saved_loads_into_a_learner_in_float32(tmp_path):
    a,b = learner(fp16(), path=tmp_path),learner(path=tmp_path)
    a.fit(1)
    a.save('m')
    b.load('m')
    assert torch.equal(weights(a), weights(b))
    b.fit(1)

def test_lr_find_leaves_no_trace():
    def fitted(search):
        learn = learner(fp16(init_scale=2.**20))
        if search:
            found = learn.lr_find(num_it=20, show_plot=False)
            assert len(found.finder.losses)>5 and learn.mixed_precision.scaler.factor==2.**20
        learn.fit(1)
        return weights(learn)
    assert torch.equal(fitted(False), fitted(True))

# to_fp16, to_bf16, to_fp32

def test_each_returns_the_learner_and_replaces_the_other():
    learn = learner()
    assert learn.to_fp16() is learn and learn.to_bf16() is learn and learn.to_fp16() is learn
    assert len(learn.cbs.filter(lambda o: isinstance(o, MixedPrecision)))==1
    assert learn.to_fp32() is learn and not hasattr(learn, 'mixed_precision')
    assert learn.to_fp16(init_scale=8., growth_factor=3., backoff_factor=0.3, growth_interval=9).mixed_precision.scaler.growth_interval==9
    assert learn.mixed_precision.scaler.factor==8.
    ref = learner()
    for o in (learn.to_fp32(), ref): o.fit(1)
    assert torch.equal(weights(learn), weights(ref))

def test_float16_on_a_cpu_is_float32_and_says_so_once():
    a,b = learner().to_fp16(),learner()
    with pytest.warns(UserWarning, match='on this CPU it is ignored') as told: a.fit(1), a.validate(), a.fit(1)
    assert len(told)==1
    b.fit(1), b.fit(1)
    assert torch.equal(weights(a), weights(b)) and a.mixed_precision.skipped==0
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learner().to_bf16().fit(1)
        learner().to_fp16(on_cpu=True).fit(1)

def test_the_kind_can_be_a_name_or_an_enum():
    assert MixedPrecision(AMPMode.BF16).dtype==MixedPrecision('bf16').dtype==torch.bfloat16
    assert MixedPrecision().dtype==MixedPrecision(amp_mode=AMPMode.FP16).dtype==torch.float16
    with pytest.raises(ValueError, match="'fp16' or 'bf16', not 'fp8'"): MixedPrecision('fp8')
    with pytest.raises(TypeError, match='needs no loss scale, so no init_scale'): MixedPrecision('bf16', init_scale=2.)

def test_two_of_them_are_refused():
    with pytest.raises(ValueError, match='two `MixedPrecision`s'): learner().to_bf16().fit(1, cbs=MixedPrecision('bf16'))

@pytest.mark.parametrize('kind', [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_are_refused(kind):
    learn = learner(model=Tiny().to(kind)).to_bf16()
    learn.compile(backend='eager')
    own = learn.model.forward
    with pytest.raises(TypeError, match='`a.weight` has 16 bits.*to\\(torch.float32\\)'): learn.fit(1)
    assert learn.model.forward==own
    learn.model.to(torch.float32)
    learn.fit(1)

# Channels-last

def pics(**kwargs):
    set_seed(3)
    x,y = torch.randn(32, 3, 16, 16),torch.randint(10, (32,))
    learn = Learner(NS(train=list(zip(x.split(8), y.split(8))), valid=[(x,y)]), simple_cnn(), lr=1e-2, metrics=accuracy, **kwargs)
    learn.logger = noop
    return learn
def is_cl(m): return m[1][0].weight.is_contiguous(memory_format=torch.channels_last)

def test_channels_last_trains_the_same():
    a,b = pics(),pics()
    assert b.to_channelslast(use_amp=False) is b and not hasattr(b, 'mixed_precision')
    for o in (a, b): o.fit(2)
    close(torch.tensor(a.recorder.losses), torch.tensor(b.recorder.losses), 1e-3)
    assert is_cl(b.model) and not is_cl(a.model)
    assert not b.model[0](torch.randn(2, 3, 16, 16)).is_contiguous()
    assert b.to_contiguous() is b and not is_cl(b.model)
    b.fit(1)
    assert not is_cl(b.model)

def test_channels_last_brings_mixed_precision_unless_it_is_there():
    learn = pics().to_channelslast(amp_mode='bf16')
    assert learn.mixed_precision.dtype==torch.bfloat16
    cb = learn.mixed_precision
    learn.to_channelslast().to_channelslast(amp_mode='fp16')
    assert learn.mixed_precision is cb and len(learn.cbs.filter(lambda o: isinstance(o, ChannelsLast)))==1
    assert learn.to_contiguous().mixed_precision is cb and not hasattr(learn.to_contiguous(to_fp32=True), 'mixed_precision')
    assert pics().to_channelslast(init_scale=4.).mixed_precision.scaler.factor==4.

# Compile

def test_a_compiled_model_keeps_names_weights_and_results():
    a,b = pics(),pics()
    assert b.compile(backend='eager') is b and list(a.model.state_dict())==list(b.model.state_dict())
    for o in (a, b): o.fit(2)
    assert torch.equal(weights(a), weights(b))
    b.model.load_state_dict(a.model.state_dict())

def test_compile_takes_what_torchs_takes():
    def counting(graphs):
        def backend(gm, inputs):
            graphs.append(len(inputs))
            return gm
        return backend
    first,second = [],[]
    learn = pics().compile(backend=counting(first), fullgraph=True)
    learn.fit(1)
    n = len(first)
    learn.compile(backend=counting(second)) # anew, and not what was compiled already
    learn.fit(1)
    assert n>0 and len(first)==n and len(second)>0

def test_a_forward_of_the_users_own_is_what_is_compiled():
    learn = learner()
    x = torch.randn(2, 6)
    learn.model.forward = lambda x: Tiny.forward(learn.model, x)*2
    want = learn.model(x)
    for _ in range(2): assert torch.equal(learn.compile(backend='eager').model(x), want)

@pytest.mark.slow
def test_a_network_of_blocks_is_one_program():
    "One for training and one for evaluation, however often they run"
    from scratchai.resnet import ResBlock,XResNet
    torch._dynamo.reset()
    graphs,data = [],pics().dls
    learn = Learner(data, XResNet(ResBlock, 1, [1,1,1,1], n_out=10, stem_szs=(4,4,64), widen=.125, sa=True)).to_bf16().to_channelslast()
    learn.compile(backend=lambda gm, inputs: graphs.append(1) or gm)
    with learn.no_logging():
        for _ in range(2): learn.fit(1)
    assert len(graphs)==2

@pytest.mark.slow
def test_freezing_and_lr_find_with_a_compiled_model():
    learn = pics(splitter=lambda m: [L(m[:4].parameters()), L(m[6].parameters())]).compile(backend='eager').to_bf16()
    learn.fit(1)
    old = {k:v.clone() for k,v in learn.model.state_dict().items()}
    learn.freeze()
    learn.lr_find(num_it=4, show_plot=False)
    assert all(torch.equal(v, old[k]) for k,v in learn.model.state_dict().items())
    learn.fit(1)
    assert {k for k,v in learn.model.state_dict().items() if not torch.equal(v, old[k])}=={'6.weight','6.bias'}
    learn.unfreeze()
    learn.fit(1)
    assert not any(torch.equal(v, old[k]) for k,v in learn.model.state_dict().items())

@pytest.mark.slow
@pytest.mark.parametrize('mode', [None,'bf16'])
def test_the_compiled_program_trains_the_same(mode):
    a,b = pics(),pics().compile()
    for o in (a, b):
        if mode: o.to_bf16()
        o.fit(2)
    close(torch.tensor(a.recorder.losses), torch.tensor(b.recorder.losses), 0.05 if mode else 1e-3)
    assert 'forward' in vars(b.model) and list(b.model.state_dict())==list(a.model.state_dict())
