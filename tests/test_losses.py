"Losses: PyTorch's value and gradient over arguments and types, rows of `-inf`, the sentences for wrong targets; losses that flatten and decode"
import pickle
from copy import deepcopy
from functools import partial

import pytest,torch,torch.nn as nn,torch.nn.functional as F
from fastcore.test import test_close as close,test_fail as fails
from torch import tensor
from torch.autograd import grad,gradcheck,gradgradcheck

from scratchai.losses import *

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
    ((x, y%3), dict(reduction='avg'), 'avg is not a valid value for reduction'), ((x, y%3), dict(label_smoothing=1.5), '0 to 1, got 1.5'),
    ((x, torch.rand(4,3)), dict(label_smoothing=-.1), '0 to 1, got -0.1'), ((x, torch.rand(4,3)), dict(reduction='avg'), 'avg is not a valid'),
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

def equal(ours, theirs): torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

w5 = tensor([.2, .5, 1., 1.5, 2.])
@pytest.mark.parametrize('red', ['mean','sum','none'])
@pytest.mark.parametrize('kw', [{}, dict(weight=w5), dict(ignore_index=2), dict(label_smoothing=.1, weight=w5)], ids=lambda o: '-'.join(o) or 'plain')
def test_cross_entropy_of_any_shape_is_torchs(kw, red):
    "Classes last, second, or wherever `axis` says; in a flat list for 'none', in the order in which targets are read"
    ref = nn.CrossEntropyLoss(**kw, reduction=red)
    for shape,axis in (((6,5), -1), ((2,4,5), -1), ((2,5,3,4), 1), ((2,5,2,3,2), 1), ((2,5,3,4), -3)):
        x = torch.randn(shape)
        y = torch.randint(5, x.movedim(axis, -1).shape[:-1])
        for targ in (y, y.int(), y.byte(), y[:,None]): equal(*[value_and_grad(f, x, t) for f,t in
            ((CrossEntropyLossFlat(**kw, axis=axis, reduction=red), targ), (lambda x,t: ref(x.movedim(axis, -1).flatten(0, -2), t.flatten()), y))])

def test_cross_entropy_of_channels_last():
    x,y = torch.randn(2, 5, 3, 4),torch.randint(5, (2,3,4))
    for red in ('mean','none'): equal(CrossEntropyLossFlat(axis=1, reduction=red)(x.contiguous(memory_format=torch.channels_last), y), CrossEntropyLossFlat(axis=1, reduction=red)(x, y))

def test_cross_entropy_of_probabilities():
    x,q = torch.randn(2, 5, 3, 4),torch.rand(2, 5, 3, 4)
    equal(CrossEntropyLossFlat(axis=1)(x, q), F.cross_entropy(x, q))

@pytest.mark.parametrize('red', ['mean','sum','none'])
def test_losses_of_single_numbers_are_torchs(red):
    x,t = torch.randn(6, 5),torch.randint(2, (6,5))
    def flat(f, red=red): return lambda x: f(x.flatten(), t.float().flatten(), reduction=red)
    for loss,f,o in ((BCEWithLogitsLossFlat, F.binary_cross_entropy_with_logits, x), (BCELossFlat, F.binary_cross_entropy, x.sigmoid()), (MSELossFlat, F.mse_loss, x), (L1LossFlat, F.l1_loss, x)):
        equal(value_and_grad(loss(reduction=red), o, t), value_and_grad(flat(f), o))
        equal(value_and_grad(loss(reduction=red), o[:,:1], t[:,0]), value_and_grad(lambda x: f(x.flatten(), t[:,0].float(), reduction=red), o[:,:1])) # a column and a row
    equal(MSELossFlat(axis=1, reduction=red)(x, t), flat(F.mse_loss)(x))
    for kw in (dict(weight=w5), dict(pos_weight=w5), dict(weight=w5, pos_weight=w5)): # weights belong to columns, so these do not flatten
        equal(BCEWithLogitsLossFlat(**kw, reduction=red)(x, t), F.binary_cross_entropy_with_logits(x, t.float(), **kw, reduction=red))
    equal(BCELossFlat(weight=w5, reduction=red)(x.sigmoid(), t), F.binary_cross_entropy(x.sigmoid(), t.float(), w5, reduction=red))
    assert BCEWithLogitsLossFlat(flatten=False, reduction='none')(x, t).shape==(6,5)

def test_floatify_makes_targets_of_the_predictions_type():
    x = torch.randn(6)
    assert MSELossFlat()(x, x.double()).dtype==torch.float32
    assert MSELossFlat()(x.double(), x.double()).dtype==torch.float64
    fails(BCEWithLogitsLossFlat(floatify=False), args=(x, torch.ones(6).long()))

@pytest.mark.parametrize('kw', [{}, dict(weight=w5)], ids=['plain','weight'])
def test_focal_loss(kw):
    x,y = torch.randn(2, 5, 3, 4),torch.randint(5, (2,3,4))
    def by_hand(x, gamma, red):
        ce = F.cross_entropy(x, y, **kw, reduction='none')
        res = (1-torch.exp(-ce))**gamma*ce
        return res if red=='none' else getattr(res, red)()
    for gamma in (0., 1., 2.5):
        for red in ('mean','sum','none'):
            equal(value_and_grad(FocalLoss(gamma, **kw, reduction=red), x, y), value_and_grad(by_hand, x, gamma, red))
            equal(FocalLossFlat(gamma, axis=1, **kw, reduction=red)(x, y), by_hand(x, gamma, red).flatten() if red=='none' else by_hand(x, gamma, red))
    equal(FocalLoss(**kw)(x, y), by_hand(x, 2., 'mean'))
    assert gradcheck(FocalLoss(2.), (x[:1].double().requires_grad_(), y[:1]))

def test_label_smoothing():
    "Without weights that of torch; `weight` is for the right class alone, as in fastai"
    x,y = torch.randn(2, 5, 3, 4),torch.randint(5, (2,3,4))
    for red in ('mean','sum','none'):
        for kw in ({}, dict(weight=w5)):
            def by_hand(x, eps):
                even = -x.log_softmax(1).mean(1)
                return (1-eps)*F.cross_entropy(x, y, **kw, reduction=red) + eps*(even if red=='none' else getattr(even, red)())
            for eps in (0., .1, .4):
                equal(value_and_grad(LabelSmoothingCrossEntropy(eps, **kw, reduction=red), x, y), value_and_grad(by_hand, x, eps))
                ours,theirs = LabelSmoothingCrossEntropyFlat(eps, axis=1, **kw, reduction=red)(x, y),by_hand(x, eps)
                equal(ours, theirs.flatten() if red=='none' else theirs)
    equal(LabelSmoothingCrossEntropy()(x, y), F.cross_entropy(x, y, label_smoothing=.1))

def test_dice_loss():
    x,y = torch.randn(2, 3, 4, 5),torch.randint(3, (2,4,5))
    def by_hand(x, y, smooth=1e-6, square=False, red='sum'):
        p,t = x.softmax(1),F.one_hot(y, 3).movedim(-1, 1)
        res = 1-(2*(p*t).sum((2,3))+smooth)/(((p*p if square else p)+t).sum((2,3))+smooth)
        return res if red=='none' else getattr(res, red)()
    for red in ('sum','mean','none'):
        for smooth in (1e-6, 1.):
            for square in (False,True): equal(value_and_grad(DiceLoss(smooth=smooth, square_in_union=square, reduction=red), x, y), value_and_grad(by_hand, x, y, smooth, square, red))
    equal(DiceLoss(axis=-1)(x.movedim(1, -1), y), by_hand(x, y))
    void = y.where(y!=2, 255)
    equal(DiceLoss(reduction='none')(x, void)[:,:2], by_hand(x, y, red='none')[:,:2])
    assert (DiceLoss(reduction='none')(x, void)[:,2]>.99).all()
    perfect = F.one_hot(y, 3).movedim(-1, 1)*50.
    close(DiceLoss()(perfect, y), 0, eps=1e-5)

every = [CrossEntropyLossFlat, LabelSmoothingCrossEntropy, LabelSmoothingCrossEntropyFlat, FocalLoss, FocalLossFlat, BCEWithLogitsLossFlat, BCELossFlat, MSELossFlat, L1LossFlat]
@pytest.mark.parametrize('cls', every, ids=lambda o: o.__name__)
def test_a_loss_can_be_changed_copied_pickled_and_sent(cls):
    x,y = torch.rand(4, 3),torch.randint(3, (4,))
    if not issubclass(cls, CrossEntropyLossFlat): y = torch.randint(2, (4,3))
    loss = cls()
    assert repr(loss)==cls.__name__ and loss.reduction=='mean'
    loss.reduction = 'none'
    each = loss(x, y)
    assert len(each) in (4,12) and (loss(x, y, reduction='sum')-each.sum()).abs()<1e-5
    for twin in (deepcopy(loss), pickle.loads(pickle.dumps(loss))): assert twin.reduction=='none' and (twin(x, y)==each).all()
    if 'Focal' in cls.__name__ or cls is CrossEntropyLossFlat:
        loss = cls(weight=torch.ones(3))
        loss.to('meta')
        assert loss.kwargs['weight'].device.type=='meta'

class Kept(torch.Tensor): __torch_function__ = torch._C._disabled_torch_function_impl
def test_targets_of_a_tensor_class():
    x,y = torch.randn(2, 3, 4, 4),torch.randint(3, (2,4,4))
    for loss in (CrossEntropyLossFlat(axis=1), FocalLoss(), LabelSmoothingCrossEntropy(), DiceLoss(), FocalLossFlat(axis=1)):
        res = loss(x.as_subclass(Kept), y.as_subclass(Kept))
        assert type(res) is torch.Tensor
        equal(res, loss(x, y))
    many = x>0
    equal(BCEWithLogitsLossFlat()(x, many.as_subclass(Kept)), BCEWithLogitsLossFlat()(x, many))

def test_what_predictions_mean():
    x = torch.randn(2, 3, 4, 4)
    for loss in (CrossEntropyLossFlat(axis=1), FocalLoss(), FocalLossFlat(axis=1), LabelSmoothingCrossEntropy(), LabelSmoothingCrossEntropyFlat(axis=1), DiceLoss()):
        equal(loss.activation(x), x.softmax(1))
        assert (loss.decodes(x)==x.argmax(1)).all()
    equal(CrossEntropyLossFlat().activation(x), x.softmax(-1))
    loss = BCEWithLogitsLossFlat(thresh=.7)
    equal(loss.activation(x), x.sigmoid())
    assert loss.decodes(tensor([.6,.8])).tolist()==[False,True]
    assert BCELossFlat().activation(x) is x and BCELossFlat().decodes(tensor([.4,.6])).tolist()==[False,True]
    for loss in (MSELossFlat(), L1LossFlat(), BaseLoss(F.huber_loss)): assert loss.activation(x) is x and loss.decodes(x) is x
    equal(BaseLoss(F.huber_loss, is_2d=False, delta=.5)(x, x*2), F.huber_loss(x, x*2, delta=.5))

class Own(nn.Module):
    def activation(self, x): return x+1
    def decodes(self, x): return x*2

class Mine(nn.CrossEntropyLoss): pass
@pytest.mark.parametrize('loss,act,dec', [(cross_entropy, 'softmax', 'argmax'), (F.cross_entropy, 'softmax', 'argmax'), (nn.CrossEntropyLoss(), 'softmax', 'argmax'), (Mine(), 'softmax', 'argmax'),
    (partial(partial(F.cross_entropy, label_smoothing=.1)), 'softmax', 'argmax'), (partial(FocalLoss()), 'softmax', 'argmax'), (F.binary_cross_entropy_with_logits, 'sigmoid', 'thresh'), (nn.BCEWithLogitsLoss(), 'sigmoid', 'thresh'),
    (F.binary_cross_entropy, None, 'thresh'), (nn.BCELoss(), None, 'thresh'), (F.mse_loss, None, None), (nn.MSELoss(), None, None), (mse, None, None), (nn.L1Loss(), None, None), (len, None, None), (None, None, None)])
def test_table_of_activations_and_decodings(loss, act, dec):
    fs = {'softmax':lambda x: x.softmax(1), 'argmax':lambda x: x.argmax(1), 'sigmoid':torch.sigmoid, 'thresh':lambda x: x>.5, None:lambda x: x}
    for x in (torch.randn(4, 3), torch.randn(2, 3, 4, 4)):
        equal(loss_activation(loss)(x), fs[act](x))
        equal(loss_decodes(loss)(x), fs[dec](x))
    if act=='softmax': equal(loss_activation(loss)(x[0,:,0,0]), x[0,:,0,0].softmax(0)) # a single row

def test_a_users_loss_says_what_it_means():
    assert loss_activation(Own())(1)==2 and loss_decodes(partial(Own()))(3)==6

x3,y3 = torch.zeros(4, 3),tensor([0,1,3,2])
@pytest.mark.parametrize('loss,args,says', [
    (CrossEntropyLossFlat(), (x3, y3[:3]), 'CrossEntropyLossFlat: predictions (4, 3) take 4 targets, got 3'), (CrossEntropyLossFlat(), (x3, y3), '`targ[2]` is 3'), (CrossEntropyLossFlat(), (x3, y3/2), 'class indices are whole'),
    (CrossEntropyLossFlat(), (x3, [0,1]), 'CrossEntropyLossFlat takes two tensors, got a list'), (FocalLossFlat(), ((x3,x3), y3), 'FocalLossFlat takes two tensors, got a tuple'), (FocalLoss(), (x3, y3), '`targ[2]` is 3'),
    (CrossEntropyLossFlat(weight=tensor([1.,2.])), (x3, y3%3), '(3,), a number a class'), (MSELossFlat(), (x3, y3), 'MSELossFlat: predictions (4, 3) take 12 targets, got 4'), (LabelSmoothingCrossEntropy(1.5), (x3, y3%3), 'from 0 to 1, got 1.5'),
    (DiceLoss(), (x3, y3), 'DiceLoss takes (bs, c, …) and (bs, …): got predictions (4, 3)'), (DiceLoss(), (torch.zeros(1,2,3,3), torch.zeros(1,1,3,3)), 'targets (1, 1, 3, 3)'),
    (FocalLoss(reduction='avg'), (x3, y3%3), "got 'avg'"), (DiceLoss(reduction='avg'), (torch.zeros(1,2,3,3), torch.zeros(1,3,3)), "got 'avg'"), (CrossEntropyLossFlat(reduction='avg'), (x3, y3%3), 'avg is not a valid')])
def test_losses_name_what_is_wrong(loss, args, says): fails(loss, args=args, contains=says)

def test_first_arguments():
    "`axis` of cross-entropy and `thresh` of labels come first"
    x,y = torch.randn(2,5,3),torch.randint(0, 5, (2,3))
    equal(CrossEntropyLossFlat(1)(x, y), CrossEntropyLossFlat(axis=1)(x, y))
    assert BCEWithLogitsLossFlat(.7).decodes(torch.tensor([.6,.8])).tolist()==[False,True]
