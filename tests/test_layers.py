"Chapter 05: layers against PyTorch's over a grid of arguments, errors in words, initialisation"
import itertools,math

import pytest,torch,torch.nn as nn,torch.nn.functional as F

from scratchai import layers
from scratchai.core import no_random,tensor
from scratchai.module import *
from scratchai.layers import *

prod = itertools.product
def rand(*shape): return torch.randn(*shape, dtype=torch.float64)

def outcome(m, x):
    x = x.clone().requires_grad_(x.is_floating_point())
    with no_random(): out = m(x)
    (out*torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [out, *[x.grad]*x.requires_grad, *(p.grad for p in m.parameters()), *m.buffers()]

def same(ours, ref, x):
    ours,ref = ours.to(torch.float64),ref.to(torch.float64)
    ref.load_state_dict(ours.state_dict())
    for a,b in zip(outcome(ours, x), outcome(ref, x), strict=True): assert a.shape==b.shape and (a-b).abs().max()<1e-12

def test_conv():
    x = rand(4,4,14,11)
    for ks,st,p,d,g,b in prod((1,3,(2,5)), (1,(2,1)), (0,(2,1)), (1,2), (1,2), (True,False)):
        same(Conv2d(4, 6, ks, st, p, b, g, d), nn.Conv2d(4, 6, ks, st, p, d, g, b), x)

def test_batchnorm():
    theirs = {2:nn.BatchNorm1d, 3:nn.BatchNorm1d, 4:nn.BatchNorm2d, 5:nn.BatchNorm3d}
    for shape,eps,mom,mode in prod(((8,4), (8,4,5), (3,4,5,6), (2,4,3,2,5)), (1e-5,1e-2), (0.1,0.5), (True,False)):
        same(BatchNorm(4, eps, mom).train(mode), theirs[len(shape)](4, eps, mom).train(mode), rand(*shape))

def test_the_rest():
    x = rand(4,4,14,11)
    for b,s in prod((True,False), ((), (5,), (2,3,4))): same(Linear(6, 3, b), nn.Linear(6, 3, b), rand(*s, 6))
    for s in ((), (5,), (2,3)): same(Embedding(7, 3), nn.Embedding(7, 3), torch.randint(0, 7, s))
    for p,t in prod((0.,0.3,1.), (True,False)): same(Dropout(p).train(t), nn.Dropout(p).train(t), x)
    for o in prod((2,3,(3,2)), (None,1,3), (0,1)):
        same(AvgPool(*o), nn.AvgPool2d(*o), x)
        same(MaxPool(*o), nn.MaxPool2d(*o), x)
    for o in (1,3,(5,2)): same(AdaptivePool(o), nn.AdaptiveAvgPool2d(o), x)
    same(ReLU(), nn.ReLU(), x)
    same(Flatten(), nn.Flatten(), x)

def test_network():
    def part(ni, nf): return nn.Sequential(nn.Conv2d(ni, nf, 3, 2, 1), nn.ReLU())
    twin = nn.Sequential(part(3,16), part(16,32), part(32,64), part(64,128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128,10))
    same(simple_cnn(), twin, rand(4,3,64,64))
    assert simple_cnn(5, ni=1)(torch.randn(2,1,100,80)).shape==(2,5)

inits = {'kaiming':[{}, {'a':0.3}, {'mode':'fan_out'}], 'xavier':[{}, {'gain':2.}]}
@pytest.mark.parametrize('name,kw', [(f'{k}{kind}', kw) for k,kws in inits.items() for kind in ('_normal_','_uniform_') for kw in kws])
def test_init_draws_as_torch(name, kw):
    def drawn(mod):
        with no_random(0): return getattr(mod, name)(torch.empty(6,4,3,3), **kw)
    assert drawn(layers).equal(drawn(nn.init))

def test_fifty_layers():
    def size(std, act=lambda x: x):
        x = torch.randn(64, 256)
        for _ in range(50): x = act(x@(torch.randn(256, 256)*std))
        return x.std().item()
    with no_random():
        assert not math.isfinite(size(1)) and size(.01)<1e-30 and .2<size(1/16)<5
        assert size(1/16, torch.relu)<1e-6 and .2<size((2/256)**.5, torch.relu)<5
        assert .4<size(.01, lambda x: BatchNorm(256)(x).relu().detach())<.8

def test_init_keeps_the_size():
    w,x = torch.empty(400, 800),torch.randn(500, 800)
    for init in (kaiming_normal_, kaiming_uniform_):
        assert abs((x@init(w).T).relu().square().mean()-1)<.05
        assert abs(F.leaky_relu(x@init(w, a=0.5).T, 0.5).square().mean()-1)<.05
    def back(mode): return 0.5*(torch.randn(500, 400)@kaiming_normal_(w, mode=mode)).square().mean()
    assert abs(back('fan_out')-1)<.05 and abs(back('fan_in')-.5)<.03
    p = Parameter(torch.empty(3,4))
    assert xavier_normal_(p) is p and xavier_uniform_(p).requires_grad
    assert abs(Embedding(500, 100, std=0.5).weight.std()-.5)<.02
    assert Linear(4,3).bias.tolist()==[0,0,0] and Conv2d(3,2).bias.tolist()==[0,0]

def test_init_says_what_is_wrong():
    with pytest.raises(ValueError, match="not 'fan'"): kaiming_normal_(torch.empty(2,2), mode='fan')
    for f in (kaiming_normal_, kaiming_uniform_, xavier_normal_, xavier_uniform_):
        with pytest.raises(ValueError, match='needs 2 axes'): f(torch.empty(16))

def test_shapes_that_do_not_fit():
    lin,conv,bn,x = Linear(4, 3),Conv2d(3, 8),BatchNorm(3),torch.randn(2,3,32,48)
    for m,inp,says in ((lin, torch.randn(5,7), r'Linear\(4, 3\) takes 4 features in axis -1 of its input, which has the shape \(5, 7\)'),
        (lin, torch.tensor(1.), r'shape \(\)'), (conv, x.permute(0,2,3,1), 'x.permute'), (conv, x.permute(0,2,1,3), 'takes 3 channels in axis -3'),
        (conv, torch.randn(3), r'shape \(3,\)'), (bn, torch.randn(2,4,8,8), r'BatchNorm\(3\) takes 3 channels in axis 1'), (bn, torch.randn(3), 'axis 1')):
        with pytest.raises(ValueError, match=says): m(inp)
    with pytest.raises(ValueError, match='more than 1 value per channel'): bn(torch.randn(1,3))
    with pytest.raises(ValueError, match='2 groups do not divide 3'): Conv2d(3, 8, groups=2)
    with pytest.raises(ValueError, match='not 20'): Dropout(20)
    with pytest.raises(IndexError, match=r'Embedding\(5, 4\) was given the indices 1 to 7'): Embedding(5, 4)(tensor([1,7]))

def test_shapes():
    x = torch.randn(2,3,32,48)
    assert [Conv2d(3, 8, ks)(x).shape for ks in (1,3,5,(3,7))]==[(2,8,32,48)]*4
    for kw,hw in ((dict(stride=2), (16,24)), (dict(padding=0), (30,46)), (dict(padding='same'), (32,48)), (dict(dilation=2), (32,48))):
        assert Conv2d(3, 8, **kw)(x).shape==(2,8,*hw)
    assert Conv2d(3, 8)(x[0]).shape==(8,32,48) and Conv2d(4, 8, groups=2).weight.shape==(8,2,3,3)
    assert Linear(4, 3)(torch.randn(0,4)).shape==(0,3)
    assert MaxPool(3, stride=1, padding=1)(-x).max()<=-x.min() and AvgPool(3, stride=1, padding=1)(torch.ones(1,1,4,4))[0,0,0,0]==tensor(4/9)

def test_batchnorm_in_use():
    bn,x = BatchNorm(3),torch.randn(64,3,8,8)*5+2
    bn(x)
    assert bn.num_batches_tracked==1 and list(bn.state_dict())==['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    torch.testing.assert_close(bn.eval()(x), (x-bn.running_mean.view(1,3,1,1))/(bn.running_var.view(1,3,1,1)+1e-5).sqrt())
    assert bn.num_batches_tracked==1

def test_dropout_and_relu():
    x,drop = torch.ones(1000,100),Dropout(0.2)
    out = drop(x)
    assert out.unique().tolist()==[0,1.25] and abs(out.mean()-1)<.01 and drop.eval()(x).equal(x)
    x = tensor([-1., 2.])
    assert ReLU()(x).tolist()==[0,2] and x.tolist()==[-1,2]
    ReLU(inplace=True)(x)
    assert x.tolist()==[0,2]

def test_conv_layer():
    assert [len(ConvLayer(3, 8, norm=o)) for o in (False, True, BatchNorm)]==[2,3,3] and len(ConvLayer(3, 8, act=None))==1
    assert [len(ConvLayer(3, 8, norm=n, bias=b)[0].parameters()) for n,b in ((False,None), (True,None), (True,True), (False,False))]==[2,1,2,1]
    assert ConvLayer(3, 8, 5, stride=2)(torch.randn(2,3,32,32)).shape==(2,8,16,16)

def test_repr():
    assert [repr(o) for o in (ReLU(), Dropout(0.1), MaxPool(3), AvgPool(), AdaptivePool(), Linear(4, 3), Linear(4, 3, bias=False), Embedding(5, 4))]==[
        'ReLU()', 'Dropout(0.1)', 'MaxPool(3)', 'AvgPool(2)', 'AdaptivePool(1)', 'Linear(4, 3)', 'Linear(4, 3, bias=False)', 'Embedding(5, 4)']
    assert repr(Conv2d(4, 8, (1,3), 2, groups=2, bias=False))=='Conv2d(4, 8, ks=(1, 3), stride=2, groups=2, bias=False)'
    assert repr(Conv2d(4, 8))=='Conv2d(4, 8, ks=3)'

def test_print_stats(capsys):
    m = ReLU()
    m.hook = print_stats
    m(torch.tensor([-1.,1.]).bfloat16())
    assert capsys.readouterr().out.split()==['(2,)', 'mean', '0.500', 'std', '0.707', 'zeros', '50%']

def test_torch_start_is_smaller():
    def torch_init(m):
        if hasattr(m, 'weight'): kaiming_uniform_(m.weight, a=5**0.5)
    x = torch.randn(16,3,64,64)
    assert simple_cnn()[:4](x).std()>4*simple_cnn().apply(torch_init)[:4](x).std()
