"Chapter 13: residual networks against torchvision's and fastai's shapes, norms of weights, attention, sizes"
import copy,math,pickle

import pytest,torch,torch.nn as nn,torch.nn.functional as F

from scratchai import resnet
from scratchai.core import no_random
from scratchai.module import *
from scratchai.layers import *
from scratchai.resnet import *
from scratchai.transfer import *

stages = {18:[2,2,2,2], 34:[3,4,6,3], 50:[3,4,6,3], 101:[3,4,23,3], 152:[3,8,36,3]}

def norm(name, nf): return [(f'{name}.{k}', (nf,)) for k in ('weight','bias','running_mean','running_var')] + [(f'{name}.num_batches_tracked', ())]

def torchvision_state(n):
    "Names and shapes of torchvision's `resnet{n}().state_dict()`, by the rule of its source"
    res,ni,ex = [('conv1.weight', (64,3,7,7)), *norm('bn1', 64)],64,1 if n<50 else 4
    for i,blocks in enumerate(stages[n]):
        nf = 64*2**i
        for j in range(blocks):
            shapes = [(nf,ni,3,3), (nf,nf,3,3)] if ex==1 else [(nf,ni,1,1), (nf,nf,3,3), (nf*4,nf,1,1)]
            for k,sh in enumerate(shapes, 1): res += [(f'layer{i+1}.{j}.conv{k}.weight', sh), *norm(f'layer{i+1}.{j}.bn{k}', sh[0])]
            if j==0 and (i or ni!=nf*ex):
                res += [(f'layer{i+1}.0.downsample.0.weight', (nf*ex,ni,1,1)), *norm(f'layer{i+1}.0.downsample.1', nf*ex)]
            ni = nf*ex
    return res + [('fc.weight', (1000,ni)), ('fc.bias', (1000,))]

@pytest.mark.parametrize('n', [18, 34, 50, 101, 152])
def test_names_and_shapes_are_torchvisions(n):
    f = getattr(resnet, f'resnet{n}')
    state = [(k, tuple(v.shape)) for k,v in f().state_dict().items()]
    assert state==torchvision_state(n) and f is getattr(models, f'resnet{n}') and f.__name__==f'resnet{n}'

def fastai_shapes(n, n_out=1000, c_in=3):
    "Shapes of the parameters of fastai's `xresnet{n}`: stem 32-32-64, blocks with path and shortcut, linear layer"
    ex,res = 1 if n<50 else 4,[]
    def conv(nf, ni, ks): return [(nf,ni,ks,ks), (nf,), (nf,)]
    for ni,nf in ((c_in,32), (32,32), (32,64)): res += conv(nf, ni, 3)
    ni = 64
    for i,blocks in enumerate(stages[n]):
        nf = 64*2**i
        for j in range(blocks):
            res += conv(nf, ni, 3)+conv(nf, nf, 3) if ex==1 else conv(nf, ni, 1)+conv(nf, nf, 3)+conv(nf*4, nf, 1)
            if ni!=nf*ex: res += conv(nf*ex, ni, 1)
            ni = nf*ex
    return [*res, (n_out,ni), (n_out,)]

@pytest.mark.parametrize('n', [18, 34, 50, 101])
def test_shapes_are_fastais(n):
    shapes = [tuple(p.shape) for p in getattr(resnet, f'xresnet{n}')().parameters()]
    assert shapes==fastai_shapes(n) and shapes[0]==(32,3,3,3)
    assert n!=34 or len(shapes)==116

def test_xresnet_is_fastais_layer_for_layer():
    m = xresnet18(n_out=7, c_in=4)
    assert [type(o).__name__ for o in m]==['ConvLayer']*3+['MaxPool']+['Sequential']*4+['AdaptivePool','Flatten','Dropout','Linear']
    assert [o[0].stride for o in m[:3]]==[2,1,1] and m(torch.randn(2,4,65,63)).shape==(2,7)
    names = [k for k in m.state_dict() if k.endswith('weight')]
    assert names[:2]==['0.0.weight','0.1.weight'] and '4.0.convpath.0.0.weight' in names and names[-1]=='11.weight'
    assert m[5][0].idpath[0].ceil_mode and [type(o).__name__ for o in m[5][0].idpath]==['AvgPool','ConvLayer'] and len(m[4][0].idpath)==0
    assert all(b.convpath[-1][1].weight.sum()==0 and b.convpath[0][1].weight.min()==1 for s in m[4:8] for b in s)
    assert all(o.bias.abs().sum()==0 for o in m.modules() if getattr(o, 'bias', None) is not None)
    assert abs(m[4][0].convpath[0][0].weight.std()/math.sqrt(2/(64*9))-1)<.05 # `kaiming_normal_`

def test_a_block_starts_as_the_identity():
    x = torch.randn(2,16,8,8).relu()
    assert ResBlock(1, 16, 16)(x).equal(x) and ResBlock(4, 4, 4)(x).equal(x)
    torch.testing.assert_close(ResBlock(1, 16, 16, stride=2, norm_type=NormType.Instance)(x), F.avg_pool2d(x, 2))

def twin(block):
    "The forward pass of a block of ours, written out with functions of `torch.nn`"
    def conv(c, x):
        x = F.conv2d(x, c[0].weight, c[0].bias, c[0].stride, c[0].padding, groups=c[0].groups)
        if len(c)>1: x = F.batch_norm(x, None, None, c[1].weight, c[1].bias, True)
        return x.relu() if len(c)==3 else x
    def f(x):
        y,z = x,x
        for c in block.convpath: y = conv(c, y)
        for o in block.idpath: z = conv(o, z) if isinstance(o, ConvLayer) else F.avg_pool2d(z, 2, ceil_mode=True)
        return (y+z).relu()
    return f

@pytest.mark.parametrize('args,kw', [((1,16,16), {}), ((1,16,24), dict(stride=2)), ((4,4,4), {}), ((4,8,4), dict(stride=2)),
    ((1,16,16), dict(groups=4, g2=2)), ((2,8,8), dict(dw=True)), ((4,8,4), dict(nh1=12, nh2=20, ks=5))])
def test_block_by_functions(args, kw):
    b = ResBlock(*args, **kw).to(torch.float64)
    for m in b.modules():
        if isinstance(m, BatchNorm): m.weight.data.uniform_(.5, 1.5)
    x = torch.randn(3, args[0]*args[1], 9, 7, dtype=torch.float64)
    torch.testing.assert_close(b(x), twin(b)(x))
    assert b(x).shape[1]==args[0]*args[2]

def kinds(m): return [type(o).__name__ for o in m.modules()]
def test_arguments_of_a_block():
    def convs(**kw): return [o for o in ResBlock(2, 16, 16, **kw).modules() if isinstance(o, Conv2d)]
    assert [o.groups for o in convs(groups=4, g2=2)]==[1,4,2] and [o.groups for o in convs(dw=True)]==[1,16,1]
    assert [o.nf for o in convs(nh1=8, nh2=24)]==[8,24,32] and [o.ks for o in convs(ks=5)]==[(1,1),(5,5),(1,1)]
    assert kinds(ResBlock(1, 16, 16, reduction=4)).count('SEModule')==1==kinds(ResBlock(1, 16, 16, sa=True)).count('SimpleSelfAttention')
    assert ResBlock(1, 16, 16, sa=True, sym=True).convpath[-1].sym and not ResBlock(1, 16, 16, sa=True).convpath[-1].sym
    assert 'Mish' in kinds(b := ResBlock(1, 16, 16, act_cls=Mish)) and 'ReLU' not in kinds(b) and isinstance(b.act, Mish)
    assert [type(o).__name__ for o in ResBlock(1, 8, 16, stride=2, pool=MaxPool, pool_first=False).idpath]==['ConvLayer','MaxPool']
    assert 'BatchNorm' not in kinds(ResBlock(1, 16, 16, norm_type=None)) and kinds(ResBlock(1, 16, 16, norm_type=NormType.Instance)).count('InstanceNorm')==2
    assert ResBlock(1, 8, 12, stride=2, ndim=1, pool=AvgPool)(torch.randn(2,8,15)).shape==(2,12,8)
    assert [type(o).__name__ for o in ResBlock(1, 8, 8, bn_1st=False).convpath[0]]==['Conv2d','ReLU','BatchNorm'] # on to `ConvLayer`

def test_arguments_of_xresnet():
    x = torch.randn(2,3,32,32)
    def net(**kw): return XResNet(**{**dict(block=ResBlock, expansion=1, layers=[1,1,1,1], n_out=5), **kw})
    assert net()(x).shape==(2,5) and net(expansion=4)(x).shape==(2,5) and XResNet(ResBlock, 1, [1,1,1,1]).parameters()[-1].shape==(1000,)
    assert net(p=.3)[10].p==.3 and net(c_in=1)(x[:,:1]).shape==(2,5) and [o[0].nf for o in net(stem_szs=(8,16,64))[:3]]==[8,16,64]
    assert net(widen=.5)[-1].weight.shape==(5,256) and net(stride=1)[:8](x).shape==(2,512,32,32)
    sa = net(sa=True, layers=[1,2,1,1])
    assert [kinds(o).count('SimpleSelfAttention') for o in sa[4:8]]==[1,0,0,0]
    assert [kinds(o).count('SimpleSelfAttention') for o in net(sa=True, layers=[2,1,1,1,1])[4:9]]==[0,1,0,0,0]
    assert net(sa=True, sym=True)[4][0].convpath[-1].sym and 'ReLU' not in kinds(net(act_cls=Swish))
    assert net(ks=5)[0][0].ks==(5,5) and net(ndim=1)(x[...,0]).shape==(2,5) and net(pool=MaxPool)[5][0].idpath[0].kind=='max'
    assert net(groups=4)[4][0].convpath[0][0].groups==4 and kinds(net(reduction=16)).count('SEModule')==4
    with pytest.raises(ValueError, match='`ks` must be odd.*not 4'): net(ks=4)
    for pool in (BlurPool, MaxBlurPool): assert net(pool=pool)(torch.randn(2,3,65,63)).shape==(2,5)

def test_other_blocks():
    for name,n_params in (('xse_resnet18',100), ('xse_resnext50',231)): # as many as fastai's
        m = getattr(models, name)(n_out=4)
        assert len(m.parameters())==n_params and kinds(m).count('SEModule')==sum(stages[18 if n_params==100 else 50])
        assert m(torch.randn(2,3,32,32)).shape==(2,4)
    assert m[4][0].convpath[1][0].groups==32
    assert [SEResNeXtBlock(4, 16, 64, base_width=w).convpath[1][0].nf for w in (4, 8)]==[128,256]
    assert 'SEModule' in kinds(SEBlock(1, 16, 16)) and SEBlock.__doc__ and SEResNeXtBlock.__doc__

def test_resnet_arguments():
    assert resnet18(n_out=3, c_in=1)(torch.randn(2,1,64,64)).shape==(2,3)==resnet50(num_classes=3)(torch.randn(2,3,64,64)).shape
    m = resnet18()
    assert abs(m.layer2[0].conv1.weight.std()/math.sqrt(2/(128*9))-1)<.05 # fan out
    assert Bottleneck(64, 16, 2)(torch.randn(2,64,9,9)).shape==(2,64,5,5) and BasicBlock(8, 16, 2)(torch.randn(2,8,9,9)).shape==(2,16,5,5)
    assert [k for k,_ in m.named_children()]==['conv1','bn1','relu','maxpool','layer1','layer2','layer3','layer4','avgpool','fc']

def test_resnet_by_functions():
    m = ResNet(BasicBlock, [1,1,1,1], n_out=3).to(torch.float64)
    def bn(m, x): return F.batch_norm(x, None, None, m.weight, m.bias, True)
    def conv(m, x): return F.conv2d(x, m.weight, None, m.stride, m.padding)
    x = torch.randn(2,3,48,40, dtype=torch.float64)
    y = F.max_pool2d(bn(m.bn1, conv(m.conv1, x)).relu(), 3, 2, 1)
    for b in (m.layer1[0], m.layer2[0], m.layer3[0], m.layer4[0]):
        z = bn(b.bn2, conv(b.conv2, bn(b.bn1, conv(b.conv1, y)).relu()))
        y = (z + (bn(b.downsample[1], conv(b.downsample[0], y)) if b.downsample else y)).relu()
    torch.testing.assert_close(m(x), F.linear(y.mean((2,3)), m.fc.weight, m.fc.bias))

def test_pretrained(monkeypatch):
    monkeypatch.setattr(resnet, 'pretrained_weights', {})
    for kw in (dict(pretrained=True), dict(weights='DEFAULT')):
        with pytest.raises(ValueError, match='There are no pretrained weights for xresnet34; `import scratchai.transfer` brings those that exist'): xresnet34(**kw)
    state = resnet18(n_out=2).state_dict()
    resnet.pretrained_weights['resnet18'] = lambda: state
    assert resnet18(True, n_out=2).fc.weight.equal(state['fc.weight']) and not resnet18(n_out=2).fc.weight.equal(state['fc.weight'])
    with pytest.raises(ValueError, match='for xresnet34, only for: resnet18'): models.xresnet34(pretrained=True)

def test_functions_are_values():
    assert 'arguments of `ResNet`' in resnet34.__doc__
    assert pickle.loads(pickle.dumps(resnet34)) is resnet34 and {resnet34: 1}[models.resnet34]==1
    assert all(getattr(models, k) is getattr(resnet, k) for k in vars(models))

def test_norms_of_weights_are_torchs():
    from torch.nn.utils import parametrizations as P
    for nd,tr in ((1,False), (2,False), (2,True), (3,True)):
        x,ref = torch.randn(2, 4, *[6]*nd),getattr(nn, f'Conv{"Transpose"*tr}{nd}d')(4, 6, 3)
        ours = weight_norm(Conv2d(4, 6, 3, padding=0, ndim=nd, transpose=tr))
        ref.weight.data,ref.bias.data = ours.weight.detach().clone(),ours.bias.detach().clone()
        P.weight_norm(ref)
        for m in (ours,ref): m(x).square().sum().backward()
        g,v = ref.parametrizations.weight.original0,ref.parametrizations.weight.original1
        torch.testing.assert_close(ours(x), ref(x))
        torch.testing.assert_close(ours.weight_g.grad, g.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.weight_v.grad, v.grad, rtol=1e-4, atol=1e-3)

def test_spectral_norm():
    conv = spectral_norm(Conv2d(4, 6, 3))
    assert list(conv.state_dict())==['bias', 'weight_u', 'weight_v', 'weight_orig'] and sorted(k for k,_ in conv.named_parameters())==['bias','weight_orig']
    u,x = conv.weight_u.clone(),torch.randn(2,4,8,8)
    conv.eval()(x)
    assert conv.weight_u.equal(u) # the estimate improves in training only
    (conv.train()(x)+conv(x)).sum().backward() # twice before one `backward`
    for _ in range(200): w = conv.weight
    assert abs(torch.linalg.svdvals(w.flatten(1))[0]-1)<1e-3 and conv.weight_orig.grad.abs().sum()>0
    tr = spectral_norm(Conv2d(4, 6, 3, transpose=True))
    for _ in range(200): w = tr.weight
    assert tr.weight_u.shape==(6,) and abs(torch.linalg.svdvals(w.transpose(0, 1).flatten(1))[0]-1)<1e-3

def test_normed_layers_are_layers():
    for kind,(nd,tr) in [(k, o) for k in (NormType.Weight, NormType.Spectral) for o in ((1,False), (2,True))]:
        m,x = ConvLayer(4, 6, ndim=nd, transpose=tr, norm_type=kind),torch.randn(2, 4, *[8]*nd)
        m(x).sum().backward()
        assert all(p.grad is not None for p in m.parameters()) and 'Conv2d(4, 6' in repr(m)
        m.eval()
        for c in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))): assert c(x).equal(m(x))
        other = ConvLayer(4, 6, ndim=nd, transpose=tr, norm_type=kind).eval()
        other.load_state_dict(m.state_dict())
        assert other(x).equal(m(x))
    with pytest.raises(AttributeError, match="'Conv2d' object has no attribute 'weights'"): Conv2d(3, 4).weights
    with pytest.raises(TypeError, match='Parameter'): (c := Conv2d(3, 4)).__setattr__('weight', torch.ones(1))

def test_attention():
    x = torch.randn(2,16,5,4)
    assert SelfAttention(16)(x).equal(x) and SimpleSelfAttention(16)(x).equal(x) # `gamma` is zero
    sa = SelfAttention(16).eval()
    sa.gamma.data.fill_(.7)
    q,k,v = [o[0].weight[...,0]@x.flatten(2) for o in (sa.query, sa.key, sa.value)]
    assert q.shape==(2,2,20) and v.shape==(2,16,20)
    attn = F.scaled_dot_product_attention(k.mT, q.mT, v.mT, scale=1.) # row j: how place j adds up all places
    torch.testing.assert_close(sa(x), x+.7*attn.mT.view_as(x), rtol=1e-4, atol=1e-4)
    for sym in (False,True):
        m = SimpleSelfAttention(16, sym=sym).eval()
        m.gamma.data.fill_(.7)
        f,w = x.flatten(2),m.conv.weight[...,0]
        if sym: w = (w+w.T)/2
        torch.testing.assert_close(m(x), (f+.7*(f@f.mT@(w@f))).view_as(x), rtol=1e-4, atol=1e-3)
    assert SimpleSelfAttention(16, ks=3)(x).shape==x.shape and SimpleSelfAttention(16, ks=3).conv.weight.shape==(16,16,3)

def test_squeeze_and_excitation():
    m,x = SEModule(16, 4, act_cls=Mish),torch.randn(2,16,5,4)
    (_,a,b) = m.layers
    assert a[0].weight.shape==(8,16,1,1) and isinstance(a[1], Mish) and SEModule(64, 4).layers[1][0].nf==16 and SEModule(64, 2).layers[1][0].nf==32
    s = F.mish(F.linear(x.mean((2,3)), a[0].weight.flatten(1), a[0].bias))
    torch.testing.assert_close(m(x), x*F.linear(s, b[0].weight.flatten(1), b[0].bias).sigmoid()[...,None,None])

def test_activations():
    x = torch.randn(20)
    assert Mish()(x).equal(nn.Mish()(x)) and Swish()(x).equal(nn.SiLU()(x))
    torch.testing.assert_close(Mish()(x), x*F.softplus(x).tanh())
    torch.testing.assert_close(Swish()(x), x*x.sigmoid())

def test_blur_pool():
    assert torch.allclose(BlurPool()(torch.full((1,2,9,9), 3.)), torch.tensor(3.)) # the weights add up to 1
    x = torch.zeros(1,1,8,8)
    x[0,0,4,4] = 16
    assert BlurPool(1)(x)[0,0,3:6,3:6].tolist()==[[1,2,1],[2,4,2],[1,2,1]]
    x = torch.randn(2,3,9,7)
    assert BlurPool()(x).shape==(2,3,5,4) and BlurPool(ceil_mode=False)(x).shape==(2,3,4,3) and BlurPool(3)(x).shape==(2,3,3,3)
    assert BlurPool(ndim=1)(x[...,0]).shape==(2,3,5) and BlurPool(ndim=3)(torch.randn(1,2,4,4,4)).shape==(1,2,2,2,2)
    assert MaxBlurPool()(x).equal(BlurPool()(F.max_pool2d(x, 3, 1, 1)))
    assert pickle.loads(pickle.dumps(MaxBlurPool()))(x).equal(MaxBlurPool()(x))
    def shift(pool): return (pool(x).roll(0)-pool(x.roll(1, 3))).abs().mean()
    assert shift(MaxBlurPool())<shift(MaxPool(3, 2, 1)) # a shift by one pixel changes less

def test_concat_pool():
    x = torch.randn(2,3,6,8)
    assert AdaptiveConcatPool2d()(x).equal(torch.cat([x.amax((2,3), keepdim=True), F.adaptive_avg_pool2d(x, 1)], 1))
    assert AdaptiveConcatPool2d(2)(x).shape==(2,6,2,2)

def test_sizes():
    m = sequential(ConvLayer(4, 8, stride=2), torch.relu, nn.Conv2d(8, 5, 3), nn.Dropout())
    m[0].eval()
    with no_random(0): before = [o.training for o in m.modules()],torch.get_rng_state()
    torch.set_rng_state(before[1])
    assert model_sizes(m, (16,12))==[(1,8,8,6), (1,5,6,4), (1,5,6,4)] and model_sizes(m)[0]==(1,8,32,32)
    assert [o.training for o in m.modules()]==before[0] and torch.get_rng_state().equal(before[1]) # nothing is left behind
    assert not m[0].__hooks__ and not m[2]._forward_hooks and m[0][1].num_batches_tracked==0
    assert in_channels(m)==4==in_channels(nn.Sequential(nn.Conv2d(4, 2, 1))) and num_features_model(m)==5
    assert num_features_model(sequential(*resnet18().children()[:-2]))==512
    assert num_features_model(Sequential(ConvLayer(3, 6), nn.Conv2d(6, 7, 100, bias=False)))==7 # 64 is too small for it
    assert has_params(m) and not has_params(ReLU()) and not has_params(nn.ReLU())
    assert total_params(m)==(sum(p.numel() for p in m.parameters()), True) and total_params(ReLU())==(0, False)
    m[0].requires_grad_(False)
    assert total_params(m)[1] is False
    with pytest.raises(ValueError, match='Sequential has no convolution for pictures'): in_channels(Sequential(Linear(3, 2)))
    with pytest.raises(ValueError, match='no convolution'): num_features_model(Sequential(Linear(3, 2)))

def test_sizes_after_an_error():
    m = Sequential(ConvLayer(3, 8), Linear(7, 2)).train()
    with pytest.raises(ValueError, match='takes 7 features'): model_sizes(m)
    assert m.training and m[0].training and not m[0].__hooks__

def test_both_worlds():
    "fastbook 14: our `Sequential` with blocks of ours and layers of `torch.nn`"
    class ResNet14(Sequential):
        def __init__(self): super().__init__(ConvLayer(3, 8, stride=2), ResBlock(1, 8, 16, stride=2), nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(16, 2))
    m,x = ResNet14(),torch.randn(2,3,32,32)
    assert m(x).shape==(2,2) and len(m.parameters())==3+9+2
    with pytest.raises(TypeError): nn.Sequential(ConvLayer(3, 8))
    theirs = nn.Sequential(to_torch(m), nn.ReLU())
    assert theirs(x).equal(m(x).relu()) and len(list(theirs.parameters()))==len(m.parameters())

def test_shortcuts_keep_gradients():
    "The lesson's claim: through plain blocks the gradient grows on its way back, and with shortcuts it does not"
    def plain(): return Sequential(ConvLayer(8, 8), ConvLayer(8, 8))
    x,y = torch.randn(16,3,8,8),torch.arange(16)%5
    def growth(block):
        m,outs = Sequential(ConvLayer(3, 8), *[block() for _ in range(20)], AdaptivePool(), Flatten(), Linear(8, 5)),[]
        for o in m[1:-3]: o.hook = lambda outp,inp: outs.append(outp)
        loss = F.cross_entropy(m(x), y)
        grads = torch.autograd.grad(loss, outs)
        return grads[0].norm()/grads[-1].norm()
    assert growth(plain)>50 and .1<growth(lambda: ResBlock(1, 8, 8))<10

@pytest.mark.slow
def test_compiles_as_one_graph():
    for m in (resnet18(n_out=3), xresnet18(n_out=3, sa=True, reduction=16)):
        f,x = torch.compile(m.eval(), backend='eager', fullgraph=True),torch.randn(2,3,64,64)
        torch.testing.assert_close(f(x), m(x))
