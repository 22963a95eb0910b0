"Chapter 04: what `Parameter`, `Module` and `Sequential` promise beyond the lesson"
import copy,io,pickle
from collections import OrderedDict,UserDict,UserList,deque

import pytest,torch,torch.nn as nn
from fastcore.all import L,store_attr

from scratchai import module
from scratchai.core import tensor
from scratchai.module import *

class Affine(Module):
    def __init__(self, ni, nf): self.weight,self.bias = Parameter(torch.randn(nf, ni)),Parameter(torch.zeros(nf))
    def forward(self, x): return x@self.weight.T + self.bias

class Net(Module):
    def __init__(self): self.l1,self.l2 = Affine(4, 8),Affine(8, 2)
    def forward(self, x): return self.l2(self.l1(x).relu())

class Mean(Module):
    def __init__(self, n):
        self.register_buffer('mean', torch.zeros(n))
        self.register_buffer('last', None, persistent=False)
        self.scale = Parameter(torch.ones(n))

def names(m, **kw): return list(m.named_parameters(**kw).itemgot(0))

def test_parameter():
    t = torch.ones(3)
    assert Parameter(t).data_ptr()==t.data_ptr()
    assert type(Parameter(Parameter(t))) is Parameter and isinstance(Parameter(t), nn.Parameter)
    assert Parameter(torch.arange(3), requires_grad=False).dtype==torch.int64
    with pytest.raises(RuntimeError, match='floating point'): Parameter(torch.arange(3))
    p = Parameter([1.,2.])
    (p*3).sum().backward()
    assert {type(o) for o in (p*3, p.detach(), p.grad, p[0], p.data)}=={torch.Tensor}
    for q in (p, Parameter([1.], requires_grad=False)):
        for q2 in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
            assert (type(q2), q2.requires_grad, q2.tolist())==(Parameter, q.requires_grad, q.tolist())
            assert q2.data_ptr()!=q.data_ptr()
    assert repr(p)=='Parameter containing:\ntensor([1., 2.], requires_grad=True)'
    lin = nn.Linear(2, 1)
    lin.bias = Parameter(torch.zeros(1))
    assert [type(o) for o in lin.parameters()]==[nn.Parameter, Parameter]

def test_reassigned_shared_removed():
    net = Net()
    net.l2 = Affine(8, 10)
    assert len(net.parameters())==4
    net.l2 = None
    assert names(net)==['l1.weight', 'l1.bias']
    net.l2 = net.l1
    assert names(net)==['l1.weight', 'l1.bias'] and len(names(net, remove_duplicate=False))==4
    del net.l1.bias
    assert names(net)==['l1.weight']
    net.act = net.l1.weight*2
    assert len(net.parameters())==1

def test_order_of_init():
    class Late(Module):
        def __init__(self):
            self.layers = [Affine(4, 4)]
            super().__init__()
    class Stored(Module):
        def __init__(self, a, n): store_attr()
    assert names(Late())==['layers.0.weight', 'layers.0.bias'] and Late().parameters(recurse=False)==[]
    assert names(Stored(Affine(2,2), 3))==['a.weight', 'a.bias']

a = Affine(2, 2)
@pytest.mark.parametrize('value,name', [([a], 'x.0'), ((a,), 'x.0'), (L(a), 'x.0'), (deque([a]), 'x.0'), (UserList([a]), 'x.0'), (dict(k=a), 'x.k'), (OrderedDict(k=a), 'x.k'),
    (UserDict(k=a), 'x.k'), ([[a, torch.relu]], 'x.0.0'), ([3, {'k': (None, [a])}], 'x.1.k.1.0')])
def test_containers(value, name):
    m = Module()
    m.x = value
    assert names(m)==[f'{name}.weight', f'{name}.bias']
    assert list(m.state_dict())==names(m) and len(m.children())==1
    assert f'({name}): Affine()' in repr(m)
    assert m.eval().x is value and not a.training
    m.train()

def test_sets_of_layers_are_refused():
    m = Module()
    m.tags,m.x = {'a','b'},[{Affine(2, 2)}]
    with pytest.raises(TypeError, match='`x.0` is a set of layers'): m.parameters()
    m.x = None
    assert m.parameters()==[]

def test_trains_from_nested_lists():
    class Deep(Module):
        def __init__(self): self.hids = [[Affine(4,4), torch.relu] for _ in range(3)]
        def forward(self, x):
            for fs in self.hids:
                for f in fs: x = f(x)
            return x
    net = Deep()
    net(torch.randn(2,4)).sum().backward()
    assert len(net.parameters())==6 and all(p.grad is not None for p in net.parameters())
    other = Deep()
    other.load_state_dict(net.state_dict())
    assert other.hids[2][0].weight.equal(net.hids[2][0].weight)

def test_torch_modules_among_ours():
    net = Net()
    net.l2 = nn.Sequential(nn.Linear(8, 2), nn.BatchNorm1d(2))
    assert names(net)[2:]==['l2.0.weight', 'l2.0.bias', 'l2.1.weight', 'l2.1.bias']
    assert list(net.named_buffers().itemgot(0))==['l2.1.running_mean', 'l2.1.running_var', 'l2.1.num_batches_tracked']
    assert net(torch.randn(5,4)).shape==(5,2)
    net.eval().to(torch.float64)
    assert not net.l2[1].training and net.l2[1].running_var.dtype==torch.float64 and net.l2[1].num_batches_tracked.dtype==torch.int64
    seen = []
    net.apply(lambda m: seen.append(type(m).__name__))
    assert seen==['Affine', 'Linear', 'BatchNorm1d', 'Sequential', 'Net']
    check_parts(net)

@pytest.mark.parametrize('put', [lambda m,o: setattr(m, 'part', o), lambda m,o: setattr(m, 'part', [{'k': o}])])
def test_ours_inside_torch_is_refused(put):
    class Theirs(nn.Module): pass
    t = Theirs()
    put(t, Affine(2, 2))
    with pytest.raises(TypeError, match='Theirs.*does not see.*Derive Theirs from `Module`'): check_parts(t)
    with pytest.raises(TypeError, match='does not see'): check_parts(nn.Sequential(nn.ReLU(), t))
    m = Module()
    m.t = t
    with pytest.raises(TypeError, match='does not see'): m.parameters()
    with pytest.raises(TypeError, match='Module'): nn.Sequential(Affine(2, 2)) # torch's own refusal
    check_parts(nn.Sequential(nn.ReLU()))

def test_plain_tensor_in_a_parameters_place():
    m = Affine(2, 2)
    with pytest.raises(TypeError, match='`weight` of Affine is a Parameter'): m.weight = m.weight*0.5
    m.weight = Parameter(m.weight*0.5)
    m.bias = None
    assert names(m)==['weight']
    del m.weight
    m.weight = torch.ones(2)
    assert names(m)==[]

def test_next_and_len():
    ps = Net().parameters()
    assert next(ps) is ps[0] and next(ps) is ps[1] and len(ps)==4
    assert next(Net().named_modules())[0]==''

def test_names():
    outer,net = Module(),Net()
    outer.net = outer.again = net
    assert list(outer.named_modules(remove_duplicate=False).itemgot(0))==['', 'net', 'net.l1', 'net.l2', 'again', 'again.l1', 'again.l2']
    assert list(net.named_modules(prefix='net').itemgot(0))==['net', 'net.l1', 'net.l2']
    assert outer.named_children()==[('net', net)] and net.children()==[net.l1, net.l2]
    assert names(net, recurse=False, prefix='p')==[] and names(net.l1, prefix='l1')==['l1.weight', 'l1.bias']

def test_buffers():
    m,outer = Mean(2),Module()
    assert m.named_buffers().itemgot(0)==['mean']
    m.last = torch.ones(2)
    outer.a = outer.b = m
    assert m.named_buffers('m').itemgot(0)==['m.mean', 'm.last'] and list(m.state_dict())==['mean', 'scale']
    assert [len(outer.buffers()), len(outer.buffers(recurse=False)), len(outer.named_buffers(remove_duplicate=False))]==[2,0,4]
    assert {type(o) for o in m.state_dict().values()}=={torch.Tensor} and m.state_dict()['scale'].data_ptr()==m.scale.data_ptr()
    assert Mean(2)._buffers is not Module._buffers and not Module._buffers

def test_load():
    net,other,wide = Net(),Net(),Net()
    f = io.BytesIO()
    torch.save(net.state_dict(), f)
    f.seek(0)
    assert other.load_state_dict(torch.load(f, weights_only=True))==([],[])
    assert all(a.equal(b) for a,b in zip(net.parameters(), other.parameters()))
    wide.l2,wide.l3 = Affine(8, 10),Affine(10, 2)
    before = {k:v.clone() for k,v in wide.state_dict().items()}
    with pytest.raises(RuntimeError, match=r'Missing: l3.weight, l3.bias. Another shape: l2.weight \(saved \(2, 8\), here \(10, 8\)\)'):
        wide.load_state_dict(net.state_dict())
    assert all(before[k].equal(v) for k,v in wide.state_dict().items())
    with pytest.raises(RuntimeError, match='Unexpected: l3.weight, l3.bias.'): net.load_state_dict({**net.state_dict(), 'l3.weight':1, 'l3.bias':2})
    with pytest.raises(RuntimeError, match=r'l1.bias \(saved a int, here \(8,\)\)'): net.load_state_dict({**net.state_dict(), 'l1.bias':3})
    with pytest.raises(RuntimeError, match='Another shape'): net.load_state_dict({'l1.bias':torch.ones(9)}, strict=False)
    with pytest.raises(TypeError, match='Not a dict of tensors: str'): net.load_state_dict('model.pth')
    keys = net.load_state_dict({'l1.bias':torch.ones(8), 'l9.bias':torch.ones(1)}, strict=False)
    assert keys.missing_keys==['l1.weight', 'l2.weight', 'l2.bias'] and keys.unexpected_keys==['l9.bias'] and net.l1.bias.sum()==8
    theirs = nn.ModuleDict(dict(l1=nn.Linear(4, 8), l2=nn.Linear(8, 2)))
    theirs.load_state_dict(net.state_dict())
    assert other.load_state_dict(theirs.state_dict())==([],[])

def test_train_asks_the_children():
    class Frozen(Module):
        def train(self, mode=True): return super().train(False)
    net = Net()
    net.l1 = Frozen()
    assert net.train() is net and not net.l1.training and net.l2.training and net.eval() is net and not net.l2.training

def test_freeze_and_zero_grad():
    net = Net()
    assert {p.requires_grad for p in net.requires_grad_(False).parameters()}=={False}
    assert {p.requires_grad for p in net.requires_grad_().parameters()}=={True}
    net(torch.randn(5,4)).sum().backward()
    g = net.l1.weight.grad
    net.zero_grad(set_to_none=False)
    assert net.l1.weight.grad.data_ptr()==g.data_ptr() and g.abs().sum()==0
    net.zero_grad()
    assert {p.grad for p in net.parameters()}=={None}

def test_to():
    m = Mean(2)
    m.weight = Parameter(torch.ones(2,3,1,1))
    m.register_buffer('count', tensor(1001))
    w = m.weight
    w.sum().backward()
    assert m.to(torch.float16) is m and m.weight is w
    assert [o.dtype for o in (w, w.grad, m.mean, m.count)]==[torch.float16]*3+[torch.int64]
    m.to(torch.float32).to(memory_format=torch.channels_last)
    assert w.is_contiguous(memory_format=torch.channels_last)
    assert m.to(torch.zeros(1, dtype=torch.float64)).mean.dtype==torch.float64 and m.count.dtype==torch.int64
    assert m.to('cpu', torch.float32, non_blocking=True).weight.dtype==torch.float32
    assert m.to(dtype=torch.bfloat16).weight.dtype==torch.bfloat16 and m.to(device='cpu').cpu() is m
    for k in ('double','half','bfloat16','float'): assert getattr(m, k)() is m and m.weight.dtype==getattr(torch, k)
    with pytest.raises(TypeError, match='cannot become torch.int8'): m.to(torch.int8)
    b = Module()
    b.register_buffer('b', torch.ones(2))
    assert b.to('meta').b.device.type=='meta'

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_cuda():
    m = Mean(2)
    m.scale.sum().backward()
    opt = torch.optim.SGD(m.parameters(), lr=.5)
    assert m.cuda() is m and [o.device.type for o in (*m.parameters(), *m.buffers(), m.scale.grad)]==['cuda']*3
    opt.step()
    assert m.scale.tolist()==[.5,.5] and m.cuda(0).cpu().mean.device.type=='cpu'

def test_hooks():
    net,x,seen = Net(),torch.randn(5,4),[]
    h1,h2 = net.register_forward_hook(lambda m,i,o: o+1),net.register_forward_hook(lambda m,i,o: o*2)
    assert net(x).equal((net.forward(x)+1)*2)
    h1.remove()
    h1.remove()
    assert net(x).equal(net.forward(x)*2)
    h2.remove()
    h = net.register_forward_hook(lambda m,i,o: h.remove()) # removes itself while the hooks run
    h3 = net.register_forward_hook(lambda m,i,o: seen.append(i))
    net(x)
    assert seen[-1][0] is x and len(net.__hooks__)==1
    h3.remove()
    with pytest.raises(KeyError):
        with net.register_forward_hook(lambda m,i,o: seen.append(o)): raise KeyError
    assert not net.__hooks__ and not Module.__hooks__
    h = net.register_forward_hook(lambda m,i,o: o+1)
    twin = copy.deepcopy(net)
    h.remove()
    assert twin(x).equal(net(x)+1) and not net.__hooks__ # a copy keeps hooks of its own
    net.hook = lambda outp,inp: seen.append((outp, inp))
    out = net(x)
    assert seen[-1][0] is out and seen[-1][1][0] is x

def test_repr():
    class Named(Module):
        def extra_repr(self): return 'a=3'
    m = Module()
    m.l = Sequential(Named(), torch.relu)
    assert repr(m)=='Module(\n  (l): Sequential(\n    (0): Named(a=3)\n    (1): relu\n  )\n)'
    with pytest.raises(NotImplementedError, match='Module has no `forward`'): m(1)

def test_sequential():
    m,x = Sequential(Affine(4,8), torch.relu, Affine(8,2)),torch.randn(5,4)
    assert list(m.state_dict())==['0.weight', '0.bias', '2.weight', '2.bias']
    assert len(m)==3 and m[-1] is list(m)[2] and m[:-1][0] is m[0] and list(m[2:].state_dict())==['0.weight', '0.bias']
    body = m[:-1]
    assert body.append(Affine(8,5)) is body and body(x).shape==(5,5) and len(m)==3
    with pytest.raises(IndexError): m[7]
    with pytest.raises(TypeError, match='not a list'): Sequential([torch.relu])
    ref = nn.Sequential(nn.Linear(4,8), nn.ReLU(), nn.Linear(8,2))
    ref.load_state_dict(m.state_dict())
    torch.testing.assert_close(ref(x), m(x))

def test_a_chain_is_called_without_vars(monkeypatch):
    "`torch.compile` of PyTorch 2.11 ends its graph there, and then compiles `__call__` for each module anew, up to its limit"
    m,x = Sequential(Sequential(Affine(4,8), torch.relu), Affine(8,2)),torch.randn(5,4)
    want = m(x)
    monkeypatch.setattr(module, 'vars', lambda o: 1/0, raising=False)
    assert m(x).equal(want) and len(m)==2 and [*m][1] is m[1] and bool(m)

def test_copies():
    net,x = Net(),torch.randn(5,4)
    net.l3 = net.l2
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert twin.l3 is twin.l2 and twin(x).equal(net(x)) and twin.l1.weight.data_ptr()!=net.l1.weight.data_ptr()

def family(Module, Parameter, Sequential):
    class Leaf(Module):
        def __init__(self):
            super().__init__()
            self.weight,self.bias = Parameter(torch.eye(4)),Parameter(torch.zeros(4))
            self.register_buffer('mean', torch.ones(4))
            self.register_buffer('tmp', torch.ones(4), persistent=False)
        def forward(self, x): return (x-self.mean)@self.weight + self.bias
    class Root(Module):
        def __init__(self):
            super().__init__()
            self.a,self.seq,self.none,self.scale = Leaf(),Sequential(Leaf(), Sequential(Leaf())),None,Parameter(torch.ones(()))
            self.b = self.a
        def forward(self, x): return self.b(self.seq(self.a(x)).tanh())*self.scale
    return Root()

pre,one,dup = dict(prefix='p'),dict(recurse=False),dict(remove_duplicate=False)
grid = dict(named_parameters=({}, pre, one, dup), named_buffers=({}, pre, one, dup), named_modules=({}, pre, dup), named_children=({},), state_dict=({},))
@pytest.mark.parametrize('method,kw', [(k,kw) for k,kws in grid.items() for kw in kws])
def test_names_are_torchs(method, kw):
    def answer(m): return [o[0] if isinstance(o, tuple) else o for o in getattr(m, method)(**kw)]
    assert answer(family(Module, Parameter, Sequential))==answer(family(nn.Module, nn.Parameter, nn.Sequential))

def test_values_are_torchs():
    ours,ref,x = family(Module, Parameter, Sequential),family(nn.Module, nn.Parameter, nn.Sequential),torch.randn(5,4)
    ref.load_state_dict({k: torch.randn_like(v) for k,v in ours.state_dict().items()})
    ours.load_state_dict(ref.state_dict())
    for m in (ours, ref): m(x).square().sum().backward()
    assert ours(x).equal(ref(x))
    for p,q in zip(ours.parameters(), ref.parameters(), strict=True): assert p.grad.equal(q.grad)

class Inner(Module):
    def __init__(self):
        self.weight = Parameter(torch.randn(3, 3))
        self.register_buffer('seen', torch.zeros(3))
        self.register_buffer('scratch', torch.zeros(2), persistent=False)
    def forward(self, x):
        self.seen = self.seen + x.detach().sum(0) # a new tensor, not in place
        return x@self.weight

class Outer(Module):
    def __init__(self): self.layers,self.act,self.out = [Inner(), {'a':Inner()}],torch.relu,nn.Linear(3, 2)
    def forward(self, x): return self.out(self.act(self.layers[1]['a'](self.layers[0](x))))

def test_to_torch_shares_names_and_tensors():
    m = Outer()
    t,x = to_torch(m),torch.randn(4,3)
    assert isinstance(t, nn.Module) and to_torch(m.out) is m.out
    assert [k for k,_ in t.named_parameters()]==m.named_parameters().itemgot(0) and list(t.state_dict())==list(m.state_dict())
    assert all(a is b for a,b in zip(t.parameters(), m.parameters(), strict=True))
    assert 'layers.1.a.scratch' in dict(t.named_buffers()) and 'layers.1.a.scratch' not in t.state_dict()
    seq = nn.Sequential(nn.Flatten(), t)
    seq(x).sum().backward()
    assert all(p.grad is not None for p in m.parameters()) and m.layers[0].seen.equal(x.sum(0))
    assert t.get_buffer('layers.0.seen').equal(x.sum(0)) # also where `forward` made a new tensor
    opt = torch.optim.SGD(seq.parameters(), 0.1)
    before = m.layers[0].weight.clone()
    opt.step()
    assert not m.layers[0].weight.equal(before)

def test_to_torch_follows():
    m = Outer()
    t,x = to_torch(m),torch.randn(4,3)
    assert not t.eval().__ours__.training and not m.layers[1]['a'].training and t.train() is t and m.layers[0].training
    t.double()
    assert {o.dtype for o in m.state_dict().values()}=={torch.float64} and t(x.double()).dtype==torch.float64
    t.float().load_state_dict(Outer().state_dict())
    assert all(a.equal(b) for a,b in zip(t.state_dict().values(), m.state_dict().values(), strict=True)) and t(x).equal(m(x))
    m.load_state_dict(Outer().state_dict())
    assert all(a.equal(b) for a,b in zip(t.state_dict().values(), m.state_dict().values(), strict=True))
    m.to(torch.float64)
    m.layers[0].weight = Parameter(torch.ones(3, 3).double())
    assert t(x.double()).equal(m(x.double())) and t.get_parameter('layers.0.weight') is m.layers[0].weight
    m.to(torch.float32)
    c = copy.deepcopy(t)
    c.get_parameter('layers.0.weight').data.zero_()
    assert c(x).equal(c.__ours__(x)) and m.layers[0].weight.abs().sum()>0
    check_parts(Sequential(t, torch.relu))
    assert len(Sequential(t, torch.relu).parameters())==len(m.parameters())
    assert repr(to_torch(Sequential(Outer()))).startswith('Sequential(\n  (0): Outer(')

def test_to_torch_sees_what_is_assigned_and_lends():
    m,x = Inner(),torch.randn(4,3)
    t,w = to_torch(m),m.weight
    twice = torch.func.functional_call(t, {'weight': w.detach()*2}, x)
    assert torch.allclose(twice, m.forward(x)*2) and m.weight is w and t.weight is w
    t.register_buffer('more', torch.ones(2))
    t.weight = nn.Parameter(torch.eye(3))
    assert m.weight is t.weight and m(x).equal(x) and t(x).equal(x) and list(t.state_dict())==['weight', 'seen', 'more']
    m.weight = None
    assert t.weight is None and [k for k,_ in t.named_parameters()]==[]
    with pytest.raises(AttributeError, match='no attribute'): t.training_of_ours

def test_to_torch_exports():
    class Net(Module):
        def __init__(self): self.l1,self.l2 = Affine1(4, 5),nn.Linear(5, 2)
        def forward(self, x): return self.l2(self.l1(x).relu())
    m,x = Net(),torch.randn(3,4)
    weight = m.l1.weight
    program = torch.export.export(to_torch(m).eval(), (x,))
    torch.testing.assert_close(program.module()(x), m(x))
    assert m.l1.weight is weight and sorted(program.state_dict)==sorted(m.state_dict())

class Affine1(Module):
    def __init__(self, ni, nf): self.weight,self.bias = Parameter(torch.randn(nf, ni)),Parameter(torch.zeros(nf))
    def forward(self, x): return x@self.weight.T + self.bias
