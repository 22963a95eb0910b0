"Losses: PyTorch's value and gradient over arguments and types, rows of `-inf`, the sentences for wrong targets"
from functools import partial

import pytest,torch,torch.nn.functional as F
from fastcore.test import test_close as close,test_fail as fails
from torch import tensor
from torch.autograd import grad,gradcheck,gradgradcheck

from scratchai.losses import accuracy,cross_entropy,log_softmax,logsumexp,mse,nll

inf = torch.inf
types = torch.float64,torch.float32,torch.bfloat16

def value_and_grad(f, x, *args, **kwargs):
    "Value of `f`, and the gradient of its sum, as one flat tensor"
    x = x.clone().requires_grad_()
    res = f(x, *args, **kwargs)
    return torch.cat([o.flatten() for o in (res.detach(), *grad(res.sum(), x))])

@pytest.mark.parametrize('dim', [0, 1, -1, (0,2), (0,1,2)])
def test_logsumexp_over_any_dimensions(dim):
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    for keep in (False,True):
        ours,theirs = logsumexp(x, dim, keepdim=keep),torch.logsumexp(x, dim, keepdim=keep)
        assert ours.shape==theirs.shape
        close(ours, theirs, eps=1e-12)
    assert gradcheck(partial(logsumexp, dim=dim), x) and gradgradcheck(partial(logsumexp, dim=dim), x)

@pytest.mark.parametrize('x', [tensor([1e4,0.,1.]), tensor([-1e4,0.,1.]), tensor([inf,0.,1.]), tensor([-inf,0.,1.]), tensor([-inf,-inf]),
    tensor([torch.nan,0.]), torch.zeros(0,3), torch.arange(3), torch.zeros(2,3).bfloat16()], ids=str)
def test_logsumexp_of_extreme_values(x):
    ours,theirs = logsumexp(x),torch.logsumexp(x, -1)
    assert ours.dtype==theirs.dtype
    torch.testing.assert_close(ours, theirs, equal_nan=True)

def test_logsumexp_of_all_minus_inf_has_gradient_0():
    x = torch.full((2,3), -inf).requires_grad_()
    assert (grad(logsumexp(x).sum(), x)[0]==0).all()

def test_log_softmax_over_any_dimension():
    x = torch.randn(4, 5, 6)*10
    for dim in range(3): close(log_softmax(x, dim), x-logsumexp(x, dim, keepdim=True), eps=1e-5)
    close(log_softmax(x).exp().sum(-1), torch.ones(4,5))

def cases():
    "Name, predictions, targets and arguments"
    g = torch.Generator().manual_seed(1)
    rn,ri = partial(torch.randn, generator=g),partial(torch.randint, generator=g)
    x,y,img,y_img = rn(8, 5),ri(5, (8,)),rn(2, 5, 4, 3),ri(5, (2,4,3))
    w,ls,none = dict(weight=x[0].exp()),dict(label_smoothing=0.1),dict(reduction='none')
    yield from (('ordinary', x, y, {}), ('large', x.sign()*1e4, y, {}), ('large smooth', x.sign()*1e4, y, ls),
        ('-inf class', x.index_fill(1, tensor(3), -inf), y%3, {}), ('-inf row', x.index_fill(0, tensor(2), -inf), y, {}),
        ('one class', x[:,:1], y*0, {}), ('one class smooth', x[:,:1], y*0, ls), ('empty', x[:0], y[:0], {}), ('empty smooth', x[:0], y[:0], ls),
        ('empty sum', x[:0], y[:0], dict(reduction='sum')), ('no batch', x[0], y[0], {}), ('no batch smooth', x[0], y[0], ls),
        ('images', img, y_img, {}), ('image probs', img, img.softmax(1), {}), ('all ignored', x, y*0-100, ls))
    for red in ('mean','sum','none'):
        r = dict(reduction=red, ignore_index=2)
        yield from ((f'weight {red}', x, y, r|w), (f'smooth {red}', x, y, r|ls), (f'both {red}', x, y, r|ls|w), (f'images {red}', img, y_img, r|ls|w),
            (f'probs {red}', x, x.exp().softmax(1), dict(reduction=red)|ls|w), (f'image probs {red}', img, img.softmax(1), dict(reduction=red)|ls|w))

@pytest.mark.parametrize('dtype', types, ids=str)
@pytest.mark.parametrize('x,y,kw', [pytest.param(*o[1:], id=o[0]) for o in cases()])
def test_cross_entropy_is_torchs(x, y, kw, dtype):
    cast = lambda o: o.to(dtype) if isinstance(o, torch.Tensor) and o.is_floating_point() else o
    kw = {k:cast(v) for k,v in kw.items()}
    ours,theirs = [value_and_grad(f, cast(x), cast(y), **kw) for f in (cross_entropy, F.cross_entropy)]
    assert ours.dtype==theirs.dtype
    torch.testing.assert_close(ours, theirs, equal_nan=True)

def test_cross_entropy_gradients():
    x,y,w = torch.randn(4, 3, dtype=torch.float64, requires_grad=True),tensor([0,1,-100,2]),tensor([1.,2.,5.]).double()
    q = torch.rand(4, 3).double()
    for t,kw in ((y, {}), (y, dict(weight=w)), (y, dict(ignore_index=2, reduction='sum')), (q, dict(weight=w, label_smoothing=0.2)),
        (y, dict(label_smoothing=0.2, reduction='none'))): assert gradcheck(partial(cross_entropy, targ=t.clamp(min=0) if 'ignore_index' in kw else t, **kw), x)

def test_cross_entropy_under_autocast():
    x,y = torch.randn(8, 5),torch.randint(5, (8,))
    with torch.autocast('cpu', torch.bfloat16):
        for o,kw in ((x.bfloat16(), {}), (x.double(), {}), (x.bfloat16(), dict(weight=x[0].exp())), (x.bfloat16(), dict(label_smoothing=.1))):
            ours,theirs = cross_entropy(o, y, **kw),F.cross_entropy(o, y, **kw)
            assert ours.dtype==theirs.dtype
            close(ours, theirs)

def test_an_ignored_row_of_minus_inf():
    x,y = tensor([[1.,2.,3.], [-inf]*3]),tensor([0,-100])
    assert value_and_grad(cross_entropy, x, y).isnan().tolist()==value_and_grad(F.cross_entropy, x, y).isnan().tolist()
    close(value_and_grad(lambda o: cross_entropy(o.masked_fill((y==-100)[:,None], 0), y), x)[-3:], torch.zeros(3))

def test_nll():
    lp,y = torch.randn(4, 3).log_softmax(1),tensor([0,1,-100,2])
    close(nll(lp, y), F.nll_loss(lp, y))
    fails(nll, args=(lp, tensor([0,1,3,2])), contains='`targ[2]` is 3')
    fails(nll, args=(lp, y[:2]), contains='(4,), got (2,)')

x,y = torch.zeros(4, 3),tensor([0,1,3,2])
maps = torch.zeros(2, 3, 4, 4)
@pytest.mark.parametrize('args,kw,says', [
    ((x, y), {}, '`targ[2]` is 3, but there are 3 classes: 0 to 2, or -100'), ((x, y-2), {}, '`targ[0]` is -2'),
    ((x, y[:,None]), {}, '(4, 3) take (4,), got (4, 1)'), ((x, y/2), {}, 'float32 (4,): class indices are whole'),
    ((x, y[:,None]/2), dict(label_smoothing=.1), 'float32 (4, 1): class indices'), ((x, (y%3).int()), {}, 'int32; take `targ.long()`'),
    ((x, y%3, torch.ones(2)), {}, '(3,), a number a class'), ((x, torch.rand(4,3), torch.ones(2)), {}, '(3,), a number a class'),
    ((x, y%3, torch.ones(3).double()), {}, '`weight` must be torch.float32'), ((x, y%3, [1.,1.,1.]), {}, 'weight must be a tensor, got list'),
    ((x, [0,1,2,0]), {}, 'targ must be a tensor, got list'), ((x.tolist(), y%3), {}, 'pred must be a tensor, got list'),
    ((x, y%3), dict(reduction='avg'), "got 'avg'"), ((x, y%3), dict(label_smoothing=1.5), '0 to 1, got 1.5'),
    ((maps, torch.full((2,4,4), 5)), {}, '`targ[0, 0, 0]` is 5'), ((maps, torch.zeros(2,4,5).long()), {}, '(2, 4, 4), got (2, 4, 5)')])
def test_wrong_arguments_are_named(args, kw, says): fails(cross_entropy, args=args, kwargs=kw, contains=says)

def test_mse():
    x,t = torch.randn(5, dtype=torch.float64, requires_grad=True),torch.randn(5, dtype=torch.float64)
    close(mse(x, t), ((x-t)**2).mean(), eps=1e-12)
    assert gradcheck(mse, (x, t))
    fails(mse, args=(x[:,None], t), contains='got (5, 1) and (5,)')

def test_accuracy():
    pred,targ = tensor([[2.,1.,0.], [0.,3.,1.], [0.,.1,.2]]),tensor([0,1,0])
    close(accuracy(pred, targ), 2/3)
    close(accuracy(pred.T, targ, axis=0), 2/3)
    fails(accuracy, args=(pred, targ[:,None]), contains='(3,), got (3, 1)')
    one = tensor([[10.,10.02]])
    assert (accuracy(one, tensor([1])),accuracy(one.bfloat16(), tensor([1])))==(1,0)
    for dead in (torch.zeros(4,3), torch.full((4,3), torch.nan)): assert accuracy(dead, tensor([0,0,1,2]))==.5
