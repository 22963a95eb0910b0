"Chapter 05: layers against PyTorch's over a grid of arguments, errors in words, initialisation"
import inspect,itertools,math,pickle
from copy import deepcopy

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
        same(BatchNorm(4, eps=eps, momentum=mom).train(mode), theirs[len(shape)](4, eps, mom).train(mode), rand(*shape))

def test_the_rest():
    x = rand(4,4,14,11)
    for b,s in prod((True,False), ((), (5,), (2,3,4))): same(Linear(6, 3, b), nn.Linear(6, 3, b), rand(*s, 6))
    for s in ((), (5,), (2,3)): same(Embedding(7, 3), nn.Embedding(7, 3), torch.randint(0, 7, s))
    up,x3 = Conv2d(8, 3, 2, stride=2, transpose=True),torch.randn(2,3,32,48,requires_grad=True)
    y = F.conv2d(x3, up.weight, stride=2)
    torch.testing.assert_close(up(y), torch.autograd.grad(y, x3, y)[0], rtol=0, atol=1e-5)
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
    for f in (lambda: Conv2d(3, 8, groups=0), lambda: GroupNorm(0, 6)):
        with pytest.raises(ValueError, match='0 groups do not divide'): f()
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

def test_conv_ndim_and_transpose():
    convs = {(1,False):nn.Conv1d, (3,False):nn.Conv3d, (1,True):nn.ConvTranspose1d, (2,True):nn.ConvTranspose2d, (3,True):nn.ConvTranspose3d}
    for (nd,tr),ref in convs.items():
        for st,p,g,d in prod((1,2), (0,1), (1,2), (1,2)):
            kw = dict(stride=st, padding=p, groups=g, dilation=d)
            same(Conv2d(4, 6, 3, ndim=nd, transpose=tr, **kw), ref(4, 6, 3, **kw), rand(2, 4, *[7]*nd))
    assert Conv2d(4, 6, 3, ndim=1)(torch.randn(2,4,9)).shape==(2,6,9) and Conv2d(4, 6, 2, 2, transpose=True)(torch.randn(2,4,8,8)).shape==(2,6,16,16)
    assert repr(Conv2d(4, 6, ndim=1, transpose=True))=='Conv2d(4, 6, ks=3, ndim=1, transpose=True)'

def test_pool_ndim_and_ceil_mode():
    kinds = [(AvgPool, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)), (MaxPool, (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d))]
    for (ours,refs),nd,ceil in prod(kinds, (1,2,3), (False,True)):
        same(ours(2, ndim=nd, ceil_mode=ceil), refs[nd-1](2, ceil_mode=ceil), rand(2, 3, *[7]*nd))
    same(AdaptivePool(), nn.AdaptiveAvgPool1d(1), rand(2,3,7))
    same(AdaptivePool(2), nn.AdaptiveAvgPool3d(2), rand(2,3,7,6,5))

@pytest.mark.slow
def test_layers_copy_pickle_and_compile_whatever_the_sizes():
    x = torch.randn(2,3,16,16)
    for m in (Conv2d(3, 4, stride=2), Conv2d(3, 4, 2, 2, transpose=True), MaxPool(), AvgPool(3, 2), ConvLayer(3, 4)):
        m.eval()
        for o in (deepcopy(m), pickle.loads(pickle.dumps(m))):
            assert o(x).equal(m(x)) and repr(o)==repr(m) and [*o.state_dict()]==[*m.state_dict()]
        f = torch.compile(lambda x: m(x), fullgraph=True, dynamic=True, backend='eager')
        torch.testing.assert_close(f(x), m(x))

def test_the_other_norms():
    x = rand(3,6,5,4)
    for eps in (1e-5, 1e-2):
        for g in (1,2,6): same(GroupNorm(g, 6, eps), nn.GroupNorm(g, 6, eps), x)
        for sh,n in ((4,4), ((4,),(4,)), ((5,4),(5,4)), ([6,5,4],(6,5,4))): same(LayerNorm(sh, eps), nn.LayerNorm(n, eps), x)
        for a in (True,False): same(InstanceNorm(6, affine=a, eps=eps), nn.InstanceNorm2d(6, eps, affine=a), x)
    same(InstanceNorm(6, ndim=1), nn.InstanceNorm1d(6, affine=True), rand(3,6,5))
    assert InstanceNorm(6, norm_type=NormType.InstanceZero).weight.sum()==0==BatchNorm(6, norm_type=NormType.BatchZero).weight.sum()
    assert [repr(o) for o in (LayerNorm((5,4)), GroupNorm(2,6), InstanceNorm(6))]==['LayerNorm(5, 4)', 'GroupNorm(2, 6)', 'InstanceNorm(6)']
    with pytest.raises(ValueError, match='4 groups do not divide 6 channels'): GroupNorm(4, 6)
    with pytest.raises(ValueError, match='more than 1 spatial element'): InstanceNorm(6)(torch.randn(2,6,1,1))
    for m in (InstanceNorm(6), GroupNorm(2, 6)):
        with pytest.raises(ValueError, match='takes 6 channels in axis 1'): m(torch.randn(2,5,4,4))

@pytest.mark.parametrize('momentum', [0.1, 0.7, None])
@pytest.mark.parametrize('half', [False, True])
def test_batchnorm_over_several_batches(momentum, half):
    ours,ref = BatchNorm(4, momentum=momentum),nn.BatchNorm2d(4, momentum=momentum)
    for i in range(6):
        x,w = torch.randn(5,4,3,2)*(i+1)+i,torch.randn(5,4,3,2)
        outs = []
        for m in (ours,ref):
            m.train(i not in (2,5))
            t = x.clone().requires_grad_()
            with torch.autocast('cpu', torch.bfloat16, enabled=half): y = m(t.bfloat16() if half else t)
            (y*w).sum().backward()
            outs.append([y.detach(), t.grad, *(p.grad.clone() for p in m.parameters()), *m.buffers()])
        assert outs[0][0].dtype==outs[1][0].dtype
        for a,b in zip(*outs, strict=True): torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert ours.num_batches_tracked==4 and all(ours.state_dict()[k].equal(v) for k,v in ref.state_dict().items())

def test_batchnorm_checks_the_axes():
    assert BatchNorm(3, ndim=1)(torch.randn(8,3)).shape==(8,3) and BatchNorm(3, ndim=1)(torch.randn(8,3,5)).shape==(8,3,5)
    with pytest.raises(ValueError, match=r'BatchNorm\(3\) was made for ndim=2, not for an input of shape \(8, 3, 5\)'): BatchNorm(3, 2)(torch.randn(8,3,5))
    with pytest.raises(ValueError, match='ndim=3'): InstanceNorm(3, 3)(torch.randn(2,3,4,4))

def names(m): return [type(o).__name__ for o in m]
def test_conv_layer():
    assert [names(ConvLayer(3, 8, **kw)) for kw in ({}, dict(norm_type=None), dict(act_cls=None), dict(bn_1st=False), dict(norm_type=NormType.Instance),
        dict(xtra=Dropout()), dict(norm_type=None, act_cls=None), dict(act_cls=nn.Sigmoid))]==[['Conv2d','BatchNorm','ReLU'], ['Conv2d','ReLU'],
        ['Conv2d','BatchNorm'], ['Conv2d','ReLU','BatchNorm'], ['Conv2d','InstanceNorm','ReLU'], ['Conv2d','BatchNorm','ReLU','Dropout'], ['Conv2d'],
        ['Conv2d','BatchNorm','Sigmoid']]
    def has_bias(**kw): return ConvLayer(3, 8, **kw)[0].bias is not None
    assert [has_bias(norm_type=n) for n in (NormType.Batch, NormType.BatchZero, NormType.Instance, NormType.InstanceZero, None)]==[False]*4+[True]
    assert has_bias(bias=True) and not has_bias(norm_type=None, bias=False)
    assert [ConvLayer(3, 8, norm_type=n)[1].weight.mean() for n in (NormType.Batch, NormType.BatchZero, NormType.InstanceZero)]==[1,0,0]
    x = torch.randn(2,4,32,32)
    assert ConvLayer(4, 8, 5, stride=2)(x).shape==(2,8,16,16) and ConvLayer(4, 8, padding=0)(x).shape==(2,8,30,30)
    assert ConvLayer(4, 8, 2, 2, transpose=True)(x).shape==(2,8,64,64) and ConvLayer(4, 8, groups=2, dilation=3)(x).shape==(2,8,32,32)
    assert ConvLayer(4, 8, ndim=1)(x[...,0]).shape==(2,8,32) and ConvLayer(4, 8, ndim=3)(torch.randn(2,4,5,5,5)).shape==(2,8,5,5,5)
    assert ConvLayer(4, 8, groups=2)[0].weight.shape==(8,2,3,3)

def test_conv_layer_has_fastais_arguments():
    ps = list(inspect.signature(ConvLayer.__init__).parameters.values())[1:]
    assert [(o.name, o.default) for o in ps[2:-1]]==[('ks',3), ('stride',1), ('padding',None), ('bias',None), ('ndim',2), ('norm_type',NormType.Batch),
        ('bn_1st',True), ('act_cls',ReLU), ('transpose',False), ('init','auto'), ('xtra',None), ('bias_std',0.01)]
    assert [o.name for o in ps[:2]]==['ni','nf'] and [o.name for o in NormType]==['Batch','BatchZero','Weight','Spectral','Instance','InstanceZero']

def test_conv_layer_of_the_book():
    "fastbook 19 calls `ConvLayer(ni, nf, stride=2)`; what was called `norm` and `act` here has other names"
    layers = Sequential(ConvLayer(3, 16, stride=2), ConvLayer(16, 32, stride=2), nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(32, 2))
    assert layers(torch.randn(2,3,16,16)).shape==(2,2) and len(layers.parameters())==8
    for kw in (dict(norm=True), dict(act=None)):
        with pytest.raises(TypeError, match='`norm_type`, a `NormType` or `None`, and `act_cls`'): ConvLayer(3, 8, **kw)

def test_norms_of_weights_come_with_chapter_13(monkeypatch):
    monkeypatch.delattr(Conv2d, 'normalize_weight', raising=False)
    with pytest.raises(ImportError, match='NormType.Weight needs `import scratchai.resnet`'): ConvLayer(3, 8, norm_type=NormType.Weight)

def test_conv_layer_init():
    def conv(**kw):
        with no_random(): return ConvLayer(16, 64, **{'norm_type':None, **kw})[0]
    def std(**kw): return conv(**kw).weight.std().item()
    assert conv().weight.abs().max()<=math.sqrt(3)*math.sqrt(2/(16*9)) and .9<std()/math.sqrt(2/(16*9))<1.1 # uniform
    assert conv(init=None).weight.abs().max()>math.sqrt(3)*math.sqrt(2/(16*9)) # as `Conv2d` makes it: normal
    class Squash(nn.Sigmoid): default_init = staticmethod(xavier_uniform_)
    assert .9<std(act_cls=Squash)/math.sqrt(2/(80*9))<1.1
    assert conv(init=lambda w: w.data.fill_(.5)).weight.unique().item()==.5
    assert .005<conv().bias.std()<.015 and .5<conv(bias_std=1.).bias.std()<1.5 and conv(bias_std=0).bias.abs().sum()==0==conv(bias_std=None).bias.abs().sum()

def test_simple_cnn_starts_as_ever():
    "The first weights: `kaiming_normal_` in the order of the layers, and zero biases"
    with no_random(3): ours = [*simple_cnn(5).state_dict().items()]
    with no_random(3): want = [kaiming_normal_(torch.empty(*s)) for s in ((16,3,3,3), (32,16,3,3), (64,32,3,3), (128,64,3,3), (5,128))]
    assert [k for k,_ in ours]==[f'{i}.{k}' for i in ('0.0','1.0','2.0','3.0','6') for k in ('weight','bias')]
    assert all(a.equal(b) for (_,a),b in zip(ours[::2], want, strict=True)) and not any(b.any() for _,b in ours[1::2])

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
