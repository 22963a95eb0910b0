"NAdam, RAdam, QHAdam, Lamb, Lion, Lookahead, and optimizers of PyTorch in a wrapper"
import inspect
from functools import partial

import pytest,torch
from torch.nn import Parameter
from test_optimizer import loop_step,rel,run
from scratchai.core import set_seed
from scratchai.optimizer import *
from scratchai.optimizers import *

def param(*x): return Parameter(torch.tensor(x))
def close(a, b, eps=1e-5): torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), atol=eps, rtol=0, check_dtype=False)

def after(opt_func, n=20, **kwargs):
    p = param(1., 2., 3.)
    opt = opt_func([p], lr=0.1, **kwargs)
    for i in range(n):
        p.grad = torch.tensor([0.1,-0.2,0.3])*(1,-0.1,2,0.01)[i%4]
        opt.step()
    return p.detach()
adams = dict(mom=0.9, sqr_mom=0.99, eps=1e-8, wd=0.)

@pytest.mark.parametrize('f,kw', [(RAdam,dict(beta=1.)), (QHAdam,dict(nu_1=0.1)), (QHAdam,dict(nu_2=0.1)), (NAdam,dict(momentum_decay=4e-3)), (Lion,dict(mom=0.1)),
    (Lion,dict(avg_mom=0.1)), (Lion,dict(wd=0.5)), *[(f,kw) for f in (RAdam,QHAdam,Lamb,NAdam) for kw in (dict(mom=0.5), dict(sqr_mom=0.9), dict(eps=0.1), dict(wd=0.5))]])
def test_every_argument_does_something(f, kw):
    base = {k:v for k,v in adams.items() if k in inspect.signature(f).parameters}
    assert not torch.equal(after(f, **base), after(f, **base|kw))

@pytest.mark.parametrize('f', [RAdam, QHAdam, Lamb, NAdam, Lion])
def test_decay_is_not_l2(f): assert not torch.equal(after(f, wd=0.5), after(f, wd=0.5, decouple_wd=False))

def test_first_steps_by_hand():
    def first(f, g=(0.1,0.2,0.3), p=(1.,2.,3.), **kw):
        q = param(*p)
        q.grad = torch.tensor(g)
        f([q], lr=0.1, **kw).step()
        return torch.tensor(p)-q.detach()
    close(first(RAdam, **adams), [0.01,0.02,0.03])
    close(first(Lion, wd=0.), [0.1]*3)
    close(first(Lion, wd=0.5, decouple_wd=False), [0.1]*3)
    close(first(Lamb, (1.,1.,1.), (0.,0.,0.)), [0.1]*3) # a norm of zero scales nothing
    close(first(QHAdam, **adams|dict(sqr_mom=0.99), nu_1=0., nu_2=0.), [0.1]*3) # the sign of the gradient

def test_two_steps_of_nadam_by_hand():
    p = param(1., 2., 3.)
    opt = NAdam([p], lr=0.1, wd=0.1)
    for want in ([0.8000,1.7900,2.7800], [0.6494,1.6295,2.6096]):
        p.grad = torch.tensor([0.1,0.2,0.3])
        opt.step()
        close(p.detach(), torch.tensor(want), eps=1e-4)

def test_lion_by_its_formula():
    p,avg,want = param(1.),0.,1.
    opt = Lion([p], lr=0.1, wd=0.)
    for g in (1., -0.1, 0.1, -0.1, -0.02, 0.001, 0.001):
        p.grad = torch.tensor([g])
        opt.step()
        mix = 0.9*avg + 0.1*g
        want,avg = want - 0.1*((mix>0)-(mix<0)),0.99*avg + 0.01*g
    close(p.item(), want)

shapes = [(4,3,3,3), (4,), (4,)]*8 + [(5,6), (5,), ()]
def params(): return set_seed(42) or [Parameter(torch.randn(s, dtype=torch.float64)) for s in shapes]

@pytest.mark.parametrize('f', [NAdam, partial(NAdam, momentum_decay=4e-3), RAdam, partial(RAdam, beta=1.), Lamb, QHAdam, Lion, ranger, partial(Lookahead, k=3)])
def test_all_at_once_is_one_by_one(f):
    res = []
    for fast in (True,False):
        ps = params()
        groups = [ps[:10], ps[10:]]
        opt = f(SGD(groups, lr=[1e-2,1e-3], mom=0.9)) if getattr(f, 'func', f) is Lookahead else f(groups, lr=[1e-2, 1e-3], wd=0.1)
        for p in ps[1::3]: opt.state[p]['do_wd'] = False
        res.append(run(ps, opt.step if fast else partial(loop_step, opt)))
    assert rel(*res) < 1e-12

def test_lookahead_and_ranger():
    p = param(1.)
    p.grad = torch.ones(1)
    assert ranger([p], lr=0.1).hypers[0] == dict(eps=1e-6, mom=0.95, sqr_mom=0.99, wd=0.01, lr=0.1, beta=0., k=6, alpha=0.5)
    assert ranger([p], lr=0.1, k=3, alpha=0.2, sqr_mom=0.9).hypers[0]['sqr_mom'] == 0.9
    opt = Lookahead(Adam([p], lr=0.1), k=2)
    assert list(opt.cbs).count(step_stat) == 1 # ... which Adam has already
    opt2 = Lookahead(SGD([p], lr=0.1), k=3, alpha=0.5)
    close([opt2.step() or p.item() for _ in range(6)], [0.9, 0.8, 0.85, 0.75, 0.65, 0.7])

def test_sparse_gradients_are_named():
    emb = torch.nn.Embedding(5, 2, sparse=True)
    opt = ranger(emb.parameters(), lr=0.1, beta=1.)
    emb(torch.tensor([1,1])).sum().backward()
    with pytest.raises(TypeError, match='is sparse'): opt.step()

def test_state_of_another_optimizer_with_a_parameter_named_like_a_hyper():
    slow,ball = Lookahead(SGD([param(1., 2.)], lr=0.1, mom=0.9)),SGD([param(1., 2.)], lr=0.1, mom=0.9)
    for o in slow,ball: o.set_names([('alpha', o.param_lists[0][0])])
    slow.param_lists[0][0].grad = torch.ones(2)
    slow.step()
    with pytest.warns(UserWarning, match='`k` is no hyper-parameter'): ball.load_state_dict(slow.state_dict(), strict=False)
    assert ball.state[ball.param_lists[0][0]]['grad_avg'].tolist() == [1.,1.]

# OptimWrapper

def sgd(): return torch.optim.SGD([param(1.)], lr=0.1, momentum=0.9)

def test_hypers_by_both_names():
    w = OptimWrapper(opt=sgd())
    w.set_hypers(momentum=0.5)
    assert (w.hypers[0]['mom'], w.opt.param_groups[0]['momentum']) == (0.5, 0.5)
    assert OptimWrapper(opt=sgd(), lr=0.3).hypers[0]['lr'] == 0.3
    with pytest.raises(ValueError, match='SGD has no hyper-parameter `sqr_mom`; it has'): w.set_hyper('sqr_mom', 0.9)
    with pytest.raises(ValueError, match='0 or more'): w.set_hyper('lr', -1.)
    ps = [param(1., 2.), param(3.), param(4.)]
    w = OptimWrapper([ps[:1], ps[1:]], opt=torch.optim.AdamW, lr=slice(0.1), mom=0.8, weight_decay=0.1)
    assert [(g['lr'], g['betas'], g['weight_decay']) for g in w.param_groups] == [(0.01, (0.8,0.999), 0.1), (0.1, (0.8,0.999), 0.1)]
    w.set_hypers(wd=0.2, betas=(0.7, 0.9))
    assert [w.hypers[1][k] for k in ('wd','mom','sqr_mom')] == [0.2, 0.7, 0.9]
    for o in 0.9,(0.9,),(0.9,0.8,0.7):
        with pytest.raises(ValueError, match='`betas` takes 2 values together'): w.set_hyper('betas', o)

class NoDefault(torch.optim.SGD):
    def __init__(self, params, lr): super().__init__(params, lr)

def test_what_a_class_is_made_with():
    for args in ([param(1.)],),([param(1.)], sgd()),(None, torch.optim.SGD):
        with pytest.raises(ValueError, match='takes parameters and'): OptimWrapper(*args)
    assert OptimWrapper([dict(params=[param(1.)], lr=0.7)], opt=torch.optim.SGD, convert_groups=False).hypers[0]['lr'] == 0.7
    mapped = OptimWrapper([param(1.)], opt=torch.optim.RMSprop, hp_map=dict(alpha='decay'), decay=0.3)
    assert mapped.opt.param_groups[0]['alpha'] == 0.3
    assert OptimWrapper([param(1.)], opt=torch.optim.RMSprop, lr=0.1, sqr_mom=0.5).opt.param_groups[0]['alpha'] == 0.5
    assert OptimWrapper([param(1.)], opt=torch.optim.SGD, lr=0.1, mom=0.9, nesterov=True).hypers[0]['nesterov'] is True
    assert OptimWrapper([param(1.)], opt=NoDefault, lr=0.2).hypers[0]['lr'] == 0.2
    assert OptimWrapper([param(1.)], opt=torch.optim.AdamW, lr=0.1, mom=0.8, sqr_mom=0.7).opt.param_groups[0]['betas'] == (0.8,0.7)

def test_a_wrapped_adamw_walks_as_ours():
    pairs = []
    for f in (partial(OptimWrapper, opt=torch.optim.AdamW, eps=1e-5, betas=(0.9,0.99)), Adam):
        ps = params()
        opt = f([ps[:10], ps[10:]], lr=[1e-2, 1e-3], wd=0.1)
        for p in ps[1::3]: opt.state[p]['do_wd'] = False
        pairs.append(run(ps, opt.step))
    assert rel(*pairs) < 1e-12

def test_freezing_added_groups_and_an_error_in_the_closure():
    p,q = param(1., 2.),param(5.)
    w = OptimWrapper([p], opt=torch.optim.Adam, lr=0.1)
    w.add_param_group(dict(params=[q], lr=0.3))
    q.grad,w.state[q]['do_wd'] = torch.ones(1),0
    assert ([h['lr'] for h in w.hypers], [len(g) for g in w.param_lists]) == ([0.1,0.3], [1,1])
    w.set_hypers(lr=slice(1.), wd=0.5)
    w.freeze()
    assert ([h['lr'] for h in w.hypers], w.frozen_idx, p.requires_grad, q.requires_grad) == ([0.1,1.], 1, False, True)
    w.step()
    w.zero_grad()
    close(q.item(), 4.)
    assert q.grad is None
    def fail(): raise OSError
    with pytest.raises(OSError): w.step(fail)
    assert [len(g['params']) for g in w.opt.param_groups] == [1,1]

@pytest.mark.parametrize('shape', [(2,), ()])
def test_saved_state_is_torchs_with_our_flags(shape):
    p = Parameter(torch.ones(shape))
    p.grad = torch.ones(shape)
    w = OptimWrapper([p], opt=torch.optim.Adam, lr=0.1)
    w.state[p]['force_train'] = True
    w.step()
    sd = w.state_dict()
    assert set(sd['state']['0']) == {'force_train','step','exp_avg','exp_avg_sq'}
    q = Parameter(torch.ones(shape, dtype=torch.float64))
    w2 = OptimWrapper([q], opt=torch.optim.Adam, lr=0.5)
    w2.load_state_dict(sd)
    assert (w2.hypers[0]['lr'], w2.state[q]['force_train'], w2.state[q]['exp_avg'].dtype) == (0.1, True, torch.float64)
    assert w2.state[q]['step'].dtype == torch.float32 # ... as torch keeps it
    q.grad = torch.ones_like(q)
    w2.step()
    w2.clear_state()
    assert dict(w2.state[q]) == dict(force_train=True)

scheds = dict(LambdaLR=dict(lr_lambda=lambda i: 0.5**i), MultiplicativeLR=dict(lr_lambda=lambda i: 0.9), StepLR=dict(step_size=2),
    CosineAnnealingLR=dict(T_max=5), CosineAnnealingWarmRestarts=dict(T_0=3), OneCycleLR=dict(max_lr=0.3, total_steps=10),
    CyclicLR=dict(base_lr=0.01, max_lr=0.3, step_size_up=2))
@pytest.mark.parametrize('k', scheds)
def test_schedulers_of_torch(k):
    def scheduled(wrapped):
        ps = [param(1., 2.), param(3., 4.)]
        if wrapped:
            w = OptimWrapper(ps, opt=torch.optim.SGD, lr=0.1, mom=0.9, wd=0.1)
            w.state[ps[1]]['do_wd'] = False
        else: w = torch.optim.SGD([dict(params=ps[:1]), dict(params=ps[1:], weight_decay=0.)], lr=0.1, momentum=0.9, weight_decay=0.1)
        sched = getattr(torch.optim.lr_scheduler, k)(getattr(w, 'opt', w), **scheds[k])
        for i in range(6):
            for p in ps: p.grad = torch.full((2,), i+1.)
            w.step(), sched.step()
        return torch.cat(ps).detach()
    close(scheduled(True), scheduled(False), eps=1e-4)

@pytest.mark.parametrize('f', [partial(SGD, mom=0.9), partial(OptimWrapper, opt=torch.optim.SGD, momentum=0.9)])
def test_a_state_saved_before_the_first_step_has_no_averages_left(f):
    p,q = param(1.),param(1.)
    sd,opt = f([p], lr=0.1).state_dict(),f([q], lr=0.1)
    for _ in range(2):
        q.grad = torch.ones(1)
        opt.step()
    opt.load_state_dict(sd)
    assert not dict(opt.state[q])
    opt.step()
    close(q.item(), 1-0.1-0.19-0.1)
