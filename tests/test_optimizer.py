"Pieces, groups, freezing and saved state of `scratchai.optimizer`"
import itertools,math,pickle
from copy import deepcopy
from functools import partial

import numpy as np,pytest,torch
from torch.nn import Parameter
from fastcore.all import noop
from scratchai.core import set_seed
from scratchai.optimizer import *
import scratchai.optimizers # adds `state_dict` and `load_state_dict`
from scratchai.optimizer import _per_group,_run_lists,_run_pieces,_to_groups

def param(*x): return Parameter(torch.tensor(x))
def close(a, b, eps=1e-5): torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), atol=eps, rtol=0, check_dtype=False)

def step_twice(opt_func, **kwargs):
    p = param(1., 2., 3.)
    p.grad = torch.tensor([0.1, 0.2, 0.3])
    opt = opt_func([p], **kwargs)
    path = [p.detach().clone()] + [opt.step() or p.detach().clone() for _ in range(2)]
    return path[0]-path[1],path[1]-path[2]

# What a reader gives as parameters and hyper-parameters

def test_groups_of_lists_generators_and_tensors():
    a,b,c = param(1.),param(2., 3.),param(4.)
    assert [len(g) for g in _to_groups(o for o in [a,b,c])] == [3]
    assert [len(g) for g in _to_groups([(o for o in [a,b]), [c]])] == [2,1]
    assert [len(g) for g in _to_groups(a)] == [1]
    kept = [o for o in (b*1, b*2) if o.retain_grad() is None]
    assert [len(g) for g in _to_groups(kept)] == [2]

@pytest.mark.parametrize('make,error,says', [
    (lambda a,b: [[a], []], ValueError, 'group 1 of 2 is empty'), (lambda a,b: [], ValueError, 'is empty'),
    (lambda a,b: [[a,b], [a]], ValueError, r'Group 1 has a parameter of shape \(1,\) again'),
    (lambda a,b: [[a], ['b']], TypeError, 'has a str in it'), (lambda a,b: [a, [b]], ValueError, 'tensor computed from others'),
    (lambda a,b: [dict(params=[a], lr=0.1)], TypeError, 'has a str in it'),
    (lambda a,b: torch.nn.Linear(1,1), TypeError, 'give its .*parameters'), (lambda a,b: torch.nn.Sequential(torch.nn.Linear(1,1)), TypeError, 'give its .*parameters'),
    (lambda a,b: [torch.nn.Linear(1,1)], TypeError, 'Linear'), (lambda a,b: 3, TypeError, 'int'),
    (lambda a,b: [a, b*2], ValueError, 'Group 0 has a tensor computed from others'),
    (lambda a,b: [Parameter(torch.ones(2)*1j)], TypeError, 'view_as_real')])
def test_wrong_parameters_are_named(make, error, says):
    with pytest.raises(error, match=says): SGD(make(param(1.), param(2., 3.)), lr=0.1)

def test_a_value_for_each_group():
    assert _per_group('lr', 0.1, 3) == [0.1]*3
    assert _per_group('lr', slice(0.1), 3) == [0.01, 0.01, 0.1]
    close(_per_group('lr', slice(1e-3, 0.1), 3), [1e-3, 1e-2, 0.1])
    for v in torch.tensor([0.1, 0.2, 0.3]),np.array([0.1, 0.2, 0.3]),[np.float32(0.1),torch.tensor(0.2),0.3]: close(_per_group('lr', v, 3), [0.1, 0.2, 0.3])
    assert _per_group('lr', slice(1e-3, 0.1), 1) == _per_group('lr', torch.tensor(0.1, dtype=torch.float64), 1) == [0.1]

@pytest.mark.parametrize('k,v,says', [('lr', [0.1,0.2], '2 values, and there are 3'), ('lr', slice(0.1, None), 'does not end in the value of the last group'),
    *[('lr', o, '`lr` cannot be .*0 or more') for o in (-0.1, math.nan, math.inf, 'fast', None)], ('mom', math.nan, '`mom` cannot be nan: a number is wanted'),
    ('momm', 0.9, 'No piece knows the hyper-parameter `momm`, only .*lr., .mom.,')])
def test_wrong_hypers_are_named(k, v, says):
    opt = SGD([[param(1.)], [param(2.)], [param(3.)]], lr=0.1, mom=0.9)
    with pytest.raises(ValueError, match=says): opt.set_hyper(k, v)
    assert [h['lr'] for h in opt.hypers] == [0.1]*3

def test_hypers_of_groups():
    a,b,c = param(1.),param(2., 3.),param(4.)
    opt = Optimizer([[a,b], [c]], [weight_decay, sgd_step], lr=slice(1e-3, 0.1))
    assert opt.hypers == [dict(wd=0., lr=1e-3), dict(wd=0., lr=0.1)]
    opt.set_hypers(lr=0.3, wd=[0.1, 0.2])
    assert [(len(pg), h['wd']) for _,pg,_,h in opt.all_params()] == [(2,0.1), (2,0.1), (1,0.2)]
    assert [len(opt.all_params(n)) for n in (1, -1, 0, slice(1))] == [1,1,2,2] and not opt.all_params(with_grad=True)
    assert 'Optimizer of weight_decay, sgd_step\n2 tensors' in repr(opt)
    assert Optimizer([a], partial(weight_decay, wd=0.5), lr=0.1).hypers[0]['wd'] == 0.5

# Steps

def test_a_step_skips_what_has_no_gradient_and_keeps_gradients():
    a,b,c = param(1.),param(2., 3.),param(4.)
    b.grad,c.grad = torch.ones(2),torch.ones(1)
    opt = SGD([a,b,c], lr=0.3, wd=0.1)
    opt.state[c]['do_wd'] = False
    opt.step()
    close(b.detach(), [2*.97-.3, 3*.97-.3])
    assert (a.item(), round(c.item(), 5), b.grad.tolist()) == (1., 3.7, [1.,1.])
    opt.zero_grad(set_to_none=False)
    assert b.grad.tolist() == [0.,0.] and a.grad is None
    opt.zero_grad()
    assert b.grad is None

def test_sgd_by_hand():
    step1 = torch.tensor([0.1, 0.2, 0.3])
    close(step_twice(SGD, lr=1.)[1], step1)
    close(step_twice(SGD, lr=1., mom=0.9)[1], step1*1.9)
    close(step_twice(SGD, lr=1., mom=0.9, nesterov=True)[0], step1*1.9)
    close(step_twice(SGD, lr=1., mom=0.9, dampening=0.5)[1], step1*1.4)
    for decouple_wd in (True,False): close(step_twice(SGD, lr=1., mom=0.9, wd=0.1, decouple_wd=decouple_wd)[0], step1*2)
    assert (step_twice(SGD, lr=1., mom=0.9, wd=0.1, decouple_wd=False)[1] > step_twice(SGD, lr=1., mom=0.9, wd=0.1)[1]).all()

def test_rms_prop_by_hand():
    close(step_twice(RMSProp, lr=1., mom=0.9, sqr_mom=0.)[1], torch.ones(3)*1.9)
    close(step_twice(RMSProp, lr=1., sqr_mom=0.5)[0], torch.ones(3)*2**0.5)
    close(step_twice(RMSProp, lr=1., sqr_mom=0., wd=0.1)[0], [1.1,1.2,1.3])
    close(step_twice(RMSProp, lr=1., sqr_mom=0., wd=0.1, decouple_wd=False)[0], torch.ones(3))
    p = param(1.)
    p.grad = torch.full((1,), 3.)
    close(average_sqr_grad(p, 0.9, dampening=False)['sqr_avg'], [9.])

def test_adam_by_hand():
    close(step_twice(Adam, lr=1., wd=0., eps=0.1)[0], [1/2, 2/3, 3/4])
    close(step_twice(Adam, lr=0.1, wd=1., eps=0.)[0], [0.2, 0.3, 0.4])
    l2 = partial(step_twice, Adam, lr=0.1, wd=1., decouple_wd=False)
    assert not torch.equal(l2(mom=0.5)[1], l2()[1]) and not torch.equal(l2(sqr_mom=0.5)[1], l2()[1])

shapes = [(4,3,3,3), (4,), (4,)]*38 + [(5,6), (5,)]
def params(): return set_seed(42) or [Parameter(torch.randn(s, dtype=torch.float64)) for s in shapes]

def run(ps, step, n=30):
    for t in range(n):
        set_seed(t)
        for i,p in enumerate(ps): p.grad = torch.randn_like(p)*10**(i%5-2)
        if t in (10,11): ps[0].grad = ps[len(ps)//2].grad = None
        step()
    return ps
def rel(a, b): return max(((x-y).abs().max()/y.abs().max().clamp(min=1e-12)).item() for x,y in zip(a, b))

def loop_step(opt):
    with torch.no_grad():
        for p,_,state,hyper in opt.all_params(with_grad=True):
            for cb in opt.cbs: state.update(cb(p, **{**state, **hyper}) or {})

def clip_grad(p, **kwargs): p.grad.mul_(min(1., p.shape[0]/p.grad.norm().item()))
def mixed(params, lr, wd): return Optimizer(params, [weight_decay, clip_grad, average_grad, momentum_step], lr=lr, wd=wd)

@pytest.mark.parametrize('f', [SGD, partial(SGD, mom=0.9), partial(SGD, mom=0.9, nesterov=True, decouple_wd=False), RMSProp, Adam, mixed])
def test_all_at_once_is_one_by_one(f):
    "Two groups with rates of their own, a third that does not decay, two tensors that miss two steps, a piece that is not marked"
    res = []
    for fast in (True,False):
        ps = params()
        opt = f([ps[:60], ps[60:]], lr=[1e-2, 1e-3], wd=0.1)
        for p in ps[1::3]: opt.state[p]['do_wd'] = False
        res.append(run(ps, opt.step if fast else partial(loop_step, opt)))
    assert rel(*res) < 1e-12

def test_amsgrad_in_two_lines_is_torchs():
    def keep_max(p, sqr_avg, sqr_max=None, **kwargs): return dict(sqr_max=sqr_avg.clone() if sqr_max is None else torch.maximum(sqr_max, sqr_avg))
    def amsgrad_step(p, sqr_max, sqr_avg=None, **kwargs): adam_step(p, sqr_avg=sqr_max, **kwargs)
    amsgrad_step.defaults = adam_step.defaults
    q,p = param(1., 2.),param(1., 2.)
    cbs = [weight_decay, step_stat, partial(average_grad, dampening=True), average_sqr_grad, keep_max, amsgrad_step]
    opt,ref = Optimizer([q], cbs, lr=0.1, mom=0.9, sqr_mom=0.99),torch.optim.Adam([p], 0.1, (0.9,0.99), eps=1e-5, amsgrad=True)
    for s in (1., 0.1, 10., 0.01, 0.01):
        q.grad = p.grad = torch.tensor([s, -s*s])
        opt.step(), ref.step()
    close(q.detach(), p.detach())

def test_parameters_that_share_a_call():
    ps = [param(float(i)) for i in range(6)]
    for p in ps[1:]: p.grad = torch.ones(1)
    opt = Adam([ps[:2], ps[2:]], lr=0.1)
    opt.state[ps[5]]['do_wd'] = False
    assert [len(b[0]) for b in opt._batches()] == [4,1]
    opt.set_hypers(lr=[0.1, 0.2])
    assert [len(b[0]) for b in opt._batches()] == [1,3,1]

def test_lists_are_cut_to_the_cache_on_a_cpu():
    lens = []
    def seen(p, **kwargs): lens.append(len(p.ts))
    for device in 'cpu','meta': _run_lists([seen], [torch.ones(i, device=device) for i in (3,3,9,1,1)], [{} for _ in range(5)], {}, n=6)
    assert lens == [2,1,2,5]

def test_a_piece_that_returns_the_wrong_thing_is_named():
    p = param(1.)
    p.grad = torch.ones(1)
    def bad_piece(p, lr, **kwargs): return p*lr
    def warm_up(p, lr, **kwargs): return dict(lr=lr*0.9)
    with pytest.raises(TypeError, match='`bad_piece` returned a Tensor'): Optimizer([p], bad_piece, lr=0.1).step()
    with pytest.raises(ValueError, match='`warm_up` returned `lr`, which is a hyper-parameter'): Optimizer([p], [warm_up, sgd_step], lr=0.1).step()

def looked_up(opt_func, sparse=True):
    set_seed(42)
    emb = torch.nn.Embedding(5, 2, sparse=sparse)
    opt = opt_func(emb.parameters(), lr=0.1)
    opt.set_names(emb.named_parameters())
    for i in range(4): emb(torch.tensor([1,1,i])).pow(2).sum().backward(), opt.step(), opt.zero_grad()
    return emb.weight.detach()

@pytest.mark.parametrize('kw', [{}, dict(wd=0.1), dict(mom=0.9), dict(mom=0.9, nesterov=True, dampening=0.5)])
def test_sgd_takes_sparse_gradients(kw): close(looked_up(partial(SGD, **kw)), looked_up(partial(SGD, **kw), sparse=False))

def test_others_name_the_parameter_of_a_sparse_gradient():
    with pytest.raises(TypeError, match='gradient of `weight` is sparse'): looked_up(Adam)
    def boom(p, **kwargs): raise RuntimeError('mine')
    p = param(1.)
    p.grad = torch.ones(1)
    with pytest.raises(RuntimeError, match='^mine$'): Optimizer([p], boom).step()

def test_copies_and_pickles():
    p = param(1., 2.)
    p.grad = torch.ones(2)
    opt = SGD([p], lr=0.1, mom=0.9)
    opt.step()
    for o in deepcopy(opt),pickle.loads(pickle.dumps(opt)):
        q, = o.param_lists[0]
        q.grad = torch.ones(2)
        o.step()
        close(q.detach(), p.detach()-0.19)

# Tensors

def test_tensors_do_what_a_tensor_does():
    ts = Tensors([torch.tensor([1.,1.]), torch.tensor([4.,4.,4.])])
    fs = [lambda t: t*2+1, lambda t: 2+t*t, lambda t: 2-t, lambda t: 2/t, lambda t: t/3-t, lambda t: (-t)**2, lambda t: abs(-t), lambda t: t.sqrt().add_(1),
        lambda t: torch.where(t>2., t.sqrt(), 0.), lambda t: torch.maximum(t, t*2), lambda t: torch.maximum(input=t, other=t*2), lambda t: t.clamp(max=2.),
        torch.zeros_like, lambda t: t==t*1, lambda t: t<=1., lambda t: t*torch.full((1,), 2.), lambda t: torch.full((1,), 2.)*t, lambda t: t/t.norm(),
        lambda t: t.addcmul(t, t, value=0.5), lambda t: t.lerp(t*3, 0.5), lambda t: torch.logaddexp(t, t*0.)]
    for i,f in enumerate(fs):
        for x,y in zip(f(ts), ts, strict=True): torch.testing.assert_close(x, f(y), msg=f'function {i}')
    t = ts
    t *= 2
    t += 1
    assert t is ts and ts.ts[0].tolist() == [3.,3.]

def test_tensors_say_what_they_cannot():
    ts = Tensors([torch.ones(2), torch.ones(3)])
    for f,k in (lambda: ts.shape, 'shape'),(lambda: ts.numel(), 'numel'),(lambda: len(ts), '__len__'),(lambda: ts.norm().item(), 'item'),(lambda: bool(ts.norm()>1.), '__bool__'):
        with pytest.raises(AttributeError, match=f'no common `torch.Tensor.{k}.*leave the mark `multi` off'): f()

def test_what_is_set_on_many_tensors_is_set_on_each():
    ts = Tensors([torch.ones(2), torch.ones(3)])
    ts.grad = ts*2
    ts.data = ts*3
    assert [(t.tolist(), t.grad.tolist()) for t in ts] == [([3.]*2, [2.]*2), ([3.]*3, [2.]*3)]
    ts.grad /= 2
    assert [t.grad.tolist() for t in ts] == [[1.]*2, [1.]*3]

def written(p, lr, n=None, **kwargs):
    p.grad *= 0.5
    p -= lr*p.grad
    p.grad = p.grad + 1
    return dict(n=torch.zeros(()) if n is None else n.add_(1))
def seen(p, lr, **kwargs): p.sub_(p.grad*lr)

@pytest.mark.parametrize('mark', [multi, lambda f: multi(partial(f))])
def test_a_piece_may_set_gradients_and_keep_tensors(mark):
    def run_own(mark):
        ps = [param(1., 2.), param(3.)]
        opt = Optimizer(ps, [mark(lambda p, lr, n=None, **kw: written(p, lr, n)), seen], lr=0.1)
        for i in range(4):
            for p in ps: p.grad = torch.full_like(p, i+1)
            opt.step()
        return [p.detach() for p in ps],[opt.state[p]['n'] for p in ps]
    (ps,ns),(qs,ms) = run_own(mark),run_own(noop)
    for x,y in zip(ps+ns, qs+ms, strict=True): torch.testing.assert_close(x, y)
    assert [n.item() for n in ns] == [3.,3.]

# Freezing

def three(opt_func=partial(SGD, mom=0.9)):
    ps = [param(float(i)) for i in range(4)]
    return ps,opt_func([ps[:2], ps[2:3], ps[3:]], lr=0.1)

def test_freezing():
    ps,opt = three()
    def training(): return [p.requires_grad for p in ps]
    opt.state[ps[0]]['force_train'] = True
    opt.freeze()
    assert (opt.frozen_idx, training()) == (2, [True,False,False,True])
    opt.freeze_to(1)
    assert training() == [True,False,True,True]
    opt.unfreeze()
    assert training() == [True]*4
    opt.set_freeze(0, False, ignore_force_train=True)
    assert training() == [False,False,True,True]
    opt.freeze_to(-5)
    assert (opt.frozen_idx, training()) == (0, [True]*4)
    with pytest.warns(UserWarning, match='freezes all parameter groups'): opt.freeze_to(3)
    with pytest.raises(ValueError, match='two parameter groups or more'): SGD([param(1.)], lr=0.1).freeze()

def test_what_is_frozen_loses_its_gradient_and_keeps_its_state():
    ps,opt = three()
    opt.state[ps[0]]['force_train'] = True
    for p in ps: p.grad = torch.ones(1)
    opt.step()
    opt.freeze_to(1)
    assert ps[1].grad is None and opt.state[ps[1]]['grad_avg'].item() == 1.
    opt.clear_state()
    assert (opt.state[ps[0]], opt.state[ps[3]]) == (dict(force_train=True), {})

# Saving

def test_state_moves_to_other_groups_and_back():
    def adam(ps, groups, lr):
        opt = Adam([ps[i:j] for i,j in groups], lr=lr)
        opt.set_names(zip('abcd', ps))
        return opt
    ps = [param(1., 2.), param(3.), param(4.), param(5.)]
    opt1 = adam(ps, [(0,4)], 1e-3)
    def go(opt, n):
        for i in range(n):
            for p,*_ in opt.all_params(): p.grad = p.detach()*(i+1)
            opt.step()
    go(opt1, 5)
    qs = [p.detach().clone().requires_grad_() for p in ps]
    opt2 = adam(qs, [(0,2), (2,4)], 0.5)
    opt2.freeze()
    opt2.load_state_dict(opt1.state_dict())
    opt2.unfreeze()
    assert [h['lr'] for h in opt2.hypers] == [1e-3]*2
    go(opt1, 3), go(opt2, 3)
    for p,q in zip(ps, qs):
        assert torch.equal(p, q) and opt1.state[p]['grad_avg'] is not opt2.state[q]['grad_avg']

def trained(opt_func, *ps, names='ab', **kwargs):
    opt = opt_func(ps, lr=0.1, **kwargs)
    opt.set_names(zip(names, ps))
    for p in ps: p.grad = torch.ones_like(p)
    opt.step()
    return opt

def test_what_does_not_fit_is_listed_and_nothing_is_loaded():
    sd = trained(Adam, param(1., 2.), param(3.)).state_dict()
    other = Adam([param(1., 2., 3.)], lr=0.3)
    other.set_names([('a', other.param_lists[0][0])])
    with pytest.raises(ValueError) as e: other.load_state_dict(sd)
    for o in '`grad_avg` of `a` has shape [2], not [3]','`b` is no parameter here': assert o in str(e.value)
    assert not other.state and other.hypers[0]['lr'] == 0.3
    with pytest.warns(UserWarning, match='`b` is no parameter'): other.load_state_dict(sd, strict=False)
    assert not other.state and other.hypers[0]['lr'] == 0.1

def test_hypers_that_do_not_fit():
    sd,ball = trained(Adam, param(1., 2.)).state_dict(),trained(SGD, param(1., 2.), mom=0.9)
    plain = SGD([param(1., 2.)], lr=0.5)
    plain.set_names([('a', plain.param_lists[0][0])])
    with pytest.raises(ValueError, match='`eps` is no hyper-parameter here'): plain.load_state_dict(sd)
    assert (plain.state, plain.hypers[0]) == ({}, dict(wd=0., lr=0.5))
    with pytest.warns(UserWarning, match='eps'): plain.load_state_dict(sd, strict=False)
    assert plain.hypers[0] == dict(wd=0.01, lr=0.1)
    with pytest.raises(ValueError, match='`sqr_mom` was not saved'): Adam([param(1., 2.)], lr=0.1).load_state_dict(ball.state_dict())
    with pytest.raises(ValueError, match='`mom` was not saved'): ball.load_state_dict(SGD([param(1., 2.)], lr=0.1).state_dict())
    for strict in (True,False):
        with pytest.raises(ValueError, match='no state of our optimizers'): plain.load_state_dict(torch.optim.SGD([param(1.)], lr=0.1).state_dict(), strict)

def test_names():
    ball = SGD([param(1., 2.), param(3.)], lr=0.1, mom=0.9)
    assert list(ball.state_dict()['state']) == ['0','1']
    ball.set_names([('1', ball.param_lists[0][0])]) # and the second goes by its place, which is 1
    with pytest.raises(ValueError, match='Two parameters have the name `1`'): ball.state_dict()

def test_saved_tensors_go_on_changing_unless_copied():
    opt = trained(SGD, param(1., 2.), mom=0.9)
    copied,live = deepcopy(opt.state_dict()),opt.state_dict()
    opt.step()
    assert [o['state']['a']['grad_avg'].tolist()[0] for o in (copied, live)] == [1., pytest.approx(1.9)]

@pytest.mark.parametrize('shape', [(2,), ()])
@pytest.mark.parametrize('saved,loaded', [(torch.float32,torch.float64), (torch.float64,torch.float32), (torch.float32,torch.bfloat16)])
def test_loaded_state_has_the_type_and_device_of_the_parameter(shape, saved, loaded):
    "A parameter that is a single number too"
    sd = trained(Adam, Parameter(torch.ones(shape, dtype=saved))).state_dict()
    q = Parameter(torch.ones(shape, dtype=loaded))
    opt = Adam([q], lr=0.1)
    opt.set_names([('a', q)])
    opt.load_state_dict(sd)
    q.grad = torch.ones_like(q)
    opt.step()
    assert {opt.state[q][k].dtype for k in ('grad_avg','sqr_avg')} == {loaded} and opt.state[q]['step'] == 2
    meta = Parameter(torch.ones(shape, device='meta'))
    opt = Adam([meta], lr=0.1)
    opt.set_names([('a', meta)])
    opt.load_state_dict(sd)
    assert opt.state[meta]['grad_avg'].device.type == 'meta'
