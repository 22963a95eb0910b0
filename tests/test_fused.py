"The compiled step against the plain one, with and without a compiler"
import math,platform,shlex,shutil,subprocess,warnings
from copy import deepcopy
from functools import partial

import pytest,torch
from torch.nn import Parameter
from scratchai.core import set_seed
from scratchai.fused import _build,_c_source,_record
from scratchai.optimizer import *
from scratchai.optimizers import *

pytestmark = pytest.mark.skipif(not shutil.which('g++'), reason='there is no C++ compiler')

def param(*x): return Parameter(torch.tensor(x))
shapes = [(4,3,3,3), (4,), (4,)]*8 + [(5,6), (1,), ()]
def params(dtype):
    set_seed(42)
    ps = [Parameter(torch.randn(s, dtype=dtype)) for s in shapes]
    ps[0].data = ps[0].data.to(memory_format=torch.channels_last)
    return ps

def differ(f, dtype=torch.float64, n=8, **kwargs):
    "The largest relative difference between compiled and plain steps at falling rates, and the kernels"
    ps,qs = params(dtype),params(dtype)
    opt,ref = f(ps, lr=1e-2, **kwargs).compile(),f(qs, lr=1e-2, **kwargs)
    for i in range(n):
        for p,q in zip(ps, qs): p.grad,q.grad = (g := torch.randn(p.shape).to(dtype)),g.clone()
        for o in opt,ref: o.set_hypers(lr=1e-2/(i+1)), o.step()
    return max(((p-q).abs().max()/q.abs().max().clamp(min=1e-12)).item() for p,q in zip(ps, qs)),opt.run_multi.kernels

@pytest.mark.parametrize('f', [SGD, partial(SGD, mom=0.9), partial(SGD, mom=0.9, nesterov=True, decouple_wd=False), RMSProp, Adam,
    NAdam, partial(NAdam, momentum_decay=4e-3), QHAdam, Lion])
def test_a_compiled_step_is_a_step(f):
    diff,kernels = differ(f, wd=0.1)
    assert diff<1e-10 and len(kernels)==1

@pytest.mark.parametrize('f', [RAdam, partial(Lookahead, k=3)])
def test_steps_that_change_their_operations_have_several_kernels(f):
    diff,kernels = differ(f if f is RAdam else lambda ps, lr: f(SGD(ps, lr, mom=0.9)))
    assert diff<1e-10 and len(kernels)==2

def test_a_kernel_in_float32(): assert differ(Adam, torch.float32)[0]<1e-5

def test_an_average_with_a_share_of_nothing():
    one = param(1., 2.)
    opt = Adam([one], lr=0.1, mom=0.).compile()
    for g in (1e6, 1e6, 1e-3): # the average was a billion times what takes its place
        one.grad = torch.full((2,), g)
        opt.step()
    assert torch.equal(opt.state[one]['grad_avg'], one.grad) and len(opt.run_multi.kernels)==1

def written(p, lr, **kwargs):
    p.grad = p.grad/2
    p -= p.grad*lr
@pytest.mark.parametrize('mark', [multi, lambda f: f])
def test_whole_numbers_as_rates_and_gradients_that_are_set(mark):
    p = param(1., 2.)
    opt = Optimizer([p], mark(lambda p, lr, **kw: written(p, lr)), lr=1).compile()
    for i in range(1, 5):
        opt.set_hypers(lr=i)
        p.grad = torch.ones(2)
        opt.step()
    assert p.tolist()==[-4.,-3.] and p.grad.tolist()==[0.5,0.5]

@pytest.mark.parametrize('f', [lambda p,g: torch.maximum(p, g), lambda p,g: torch.maximum(g, p), lambda p,g: torch.minimum(p, g), lambda p,g: p.sign(), lambda p,g: 2/p, lambda p,g: 1-abs(p), lambda p,g: torch.rsub(p, g, alpha=2)])
def test_nan_and_signs_go_through_a_kernel_as_through_torch(f):
    def piece(p, **kwargs): p.copy_(f(p, p.grad))
    p = param(math.nan, 1., -2., 0., math.inf)
    p.grad = torch.ones(5)
    want = f(p.detach(), p.grad)
    opt = Optimizer([p], multi(piece)).compile()
    opt.step()
    assert len(opt.run_multi.kernels)==1
    torch.testing.assert_close(p.detach(), want, equal_nan=True)

def test_sparse_gradients_go_the_usual_way():
    def train(opt_func, sparse):
        set_seed(42)
        emb = torch.nn.Embedding(5, 2, sparse=sparse)
        opt = opt_func(emb.parameters(), lr=0.1, mom=0.9)
        for i in range(4): emb(torch.tensor([1,1,i])).pow(2).sum().backward(), opt.step(), opt.zero_grad()
        return emb.weight.detach()
    torch.testing.assert_close(train(lambda *a, **kw: SGD(*a, **kw).compile(), True), train(SGD, False))

def test_kernels_stay_behind_when_an_optimizer_is_copied():
    p = param(1., 2.)
    p.grad = torch.ones(2)
    opt = SGD([p], lr=0.1).compile()
    opt.step()
    copied = deepcopy(opt)
    assert len(opt.run_multi.kernels)==1 and not copied.run_multi.kernels
    copied.param_lists[0][0].grad = torch.ones(2)
    copied.step()
    torch.testing.assert_close(copied.param_lists[0][0].detach(), torch.tensor([0.8, 1.8]))
    assert len(copied.run_multi.kernels)==1

# What cannot be fused

def own(p, lr, **kwargs): p.add_(p.grad*torch.ones(1), alpha=-lr)
def centred(p, lr, **kwargs): p.sub_((p.grad-p.grad.mean(-1, keepdim=True))*lr)
@pytest.mark.parametrize('f,says,want', [(own, 'a tensor from outside', [0.9, 1.7]), (centred, '`mean` is no formula', [1.1, 1.9])])
def test_a_piece_that_cannot_be_fused_is_named_and_run(f, says, want):
    p = param(1., 2.)
    p.grad = torch.tensor([1., 3.])
    opt = Optimizer([p], multi(f), lr=0.1).compile()
    with pytest.warns(UserWarning, match=says): opt.step()
    torch.testing.assert_close(p.detach(), torch.tensor(want))
    assert opt.run_multi.kernels is None
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        opt.step()

def test_no_compiler(monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.warns(UserWarning, match='could not fuse this optimizer, which goes on without'): diff,kernels = differ(SGD, wd=0.1)
    assert diff==0 and kernels is None

@pytest.mark.parametrize('refuses,fused', [('fopenmp',True), ('march',True), ('O3',False)])
def test_a_compiler_that_lacks_an_option(monkeypatch, tmp_path, refuses, fused):
    (plain := tmp_path/'plain').write_text(f'#!/bin/sh\ncase "$*" in *{refuses}*) echo no {refuses} >&2; exit 1;; esac\nexec g++ "$@"\n')
    plain.chmod(0o755)
    monkeypatch.setenv('CXX', shlex.quote(str(plain)))
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        diff,kernels = differ(Adam)
    said = [str(w.message) for w in ws if 'could not fuse' in str(w.message)]
    assert diff<1e-10 and (kernels is not None)==fused and [o[-19:] for o in said]==([] if fused else [f'plain said: no O3).'])

def tape(f):
    p = param(1., 2.)
    p.grad = torch.ones(2)
    opt = f([p], lr=0.1, wd=0.1)
    opt.step()
    return _record(list(opt.cbs), opt.state[p], opt.hypers[0])

@pytest.mark.skipif(platform.machine() not in ('x86_64','AMD64') or not shutil.which('objdump'), reason='these are instructions of x86')
@pytest.mark.parametrize('f,wanted', [(Adam, ['vsqrtps','vdivps']), (RMSProp, ['vsqrtps','vdivps']), (Lion, ['vmulps']), (NAdam, ['vsqrtps','vdivps'])])
def test_eight_numbers_at_a_time_with_avx2_only(monkeypatch, tmp_path, f, wanted):
    "Without `-fno-trapping-math`, or with scalars read inside a condition, the loop goes one by one"
    (narrow := tmp_path/'narrow').write_text(f'#!/bin/sh\ng++ "$@" -mavx2 -mfma -mno-avx512f && cp step.so {shlex.quote(str(tmp_path))}\n')
    narrow.chmod(0o755)
    monkeypatch.setenv('CXX', shlex.quote(str(narrow)))
    ops,scalars,names,_ = tape(f)
    _build(_c_source(ops, len(scalars), names, 'float'))
    lines = subprocess.run(['objdump', '-d', tmp_path/'step.so'], check=True, capture_output=True, text=True).stdout.splitlines()
    for o in wanted: assert any(o in l and '%ymm' in l for l in lines), f'no {o} of eight numbers'

@pytest.mark.parametrize('f,dtype,says', [(SGD, torch.bfloat16, 'no kernels for torch.bfloat16'), (Lamb, torch.float64, '`norm` is no formula')])
def test_other_types_and_norms_have_no_kernel(f, dtype, says):
    with pytest.warns(UserWarning, match=says): diff,kernels = differ(f, dtype)
    assert diff==0 and kernels is None
