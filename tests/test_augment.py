"Augmentation of batches: each argument, masks and points, what the loader repeats, and the faults"
import copy,math,pickle

import pytest,torch,torch.nn.functional as F
from fastcore.test import test_close as close
from scratchai.all import (CategoryBlock,DataBlock,GrandparentSplitter,ImageBlock,ImageGetter,Normalize,Pipeline,Resize,Tensor,
    TensorImage,TensorImageBW,TensorMask,TensorPoint,doodles,get_image_files,imagenet_stats,parent_label,set_seed,tensor)
from scratchai.augment import *
from scratchai.mixup import Hue,RandomErasing,Saturation,shift_hue

g = torch.Generator().manual_seed(0)
x = TensorImage(torch.rand(4, 3, 24, 24, generator=g))
wide = TensorImage(torch.rand(4, 3, 16, 32, generator=g))

def at(mat, x, **kwargs): return x.affine_coord(tensor(mat)[None].expand(len(x), -1, -1), **kwargs)
def plain(o): return o.as_subclass(Tensor)
def theirs(x, mat, size=None, mode='bilinear', pad='reflection', align=True):
    grid = F.affine_grid(tensor(mat)[None].expand(len(x), 2, 3), (*x.shape[:2], *(size or x.shape[2:])), align_corners=align)
    return F.grid_sample(plain(x), grid, mode, pad, align)

# --- where pixels come from

@pytest.mark.parametrize('mode', ['bilinear','nearest','bicubic'])
@pytest.mark.parametrize('pad', ['reflection','border','zeros'])
@pytest.mark.parametrize('align', [True,False])
def test_affine_coord_is_grid_sample(mode, pad, align):
    m = [[.9,.3,.1],[-.2,1.1,.3]]
    for size in (None,(9,20)):
        a,b = at(m, wide, sz=size, mode=mode, pad_mode=pad, align_corners=align),theirs(wide, m, size, mode, pad, align)
        assert ((plain(a)-b).abs()>1e-4).float().mean()<=(.02 if mode=='nearest' else 0) # rounding may choose the other neighbour

def test_affine_coord_keeps_class_and_dtype_and_does_not_write():
    old = x.clone()
    for o in (x.half(), x): assert (y := at([[.5,0,0],[0,.5,0]], o)).dtype==o.dtype and type(y) is TensorImage
    assert at([[1.,0,0],[0,1,0]], TensorImage((x*255).byte())).dtype==torch.float32
    assert torch.equal(plain(x), plain(old)) and x.affine_coord() is x and x.affine_coord(sz=7).shape==(4,3,7,7)
    bw = TensorImageBW(x[:,:1])
    assert type(bw.rotate(draw=5, p=1.)) is TensorImageBW and bw.rotate(draw=5, p=1.).shape==bw.shape

def test_much_smaller_takes_means_unless_it_zooms():
    fine = TensorImage(torch.arange(256.).remainder(2).expand(1, 1, 256, 256).contiguous())
    assert (fine.affine_coord(sz=32)-.5).abs().max()<.05
    assert fine.affine_coord(sz=32, mode='nearest').unique().numel()==2
    m = _box(fine, 16, 32) # 32 of 256 pixels: nothing is lost
    assert fine.affine_coord(m, sz=32).unique().numel()>2 and fine.affine_coord(m, sz=32).std()>.3

def _box(x, start, n): return tensor([[[(n-1)/255,0,(2*start+n-1)/255-1],[0,(n-1)/255,(2*start+n-1)/255-1]]])

def test_a_few_at_a_time_is_all_at_once():
    many = torch.rand(90, 3, 40, 40, generator=g).requires_grad_()
    m,by = Rotate(max_deg=40, p=1.).mat(many, Draws(range(90))),torch.linspace(.5, 2, 90)
    a,b = TensorImage(many).affine_coord(m),F.grid_sample(many, perspective_grid(m, (40,40)), 'bilinear', 'reflection', True)
    close(plain(a).detach(), b.detach(), 1e-6)
    close(*[torch.autograd.grad(plain(o).square().sum(), many)[0] for o in (a,b)], 1e-5)
    a,b = Contrast(draw=by, p=1.)(TensorImage(many.detach()), split_idx=0),(many.logit(1e-7)*by[:,None,None,None]).sigmoid()
    close(plain(a), b.detach(), 1e-5)

def test_masks_stay_integer():
    m = TensorMask(torch.randint(0, 7, (4,24,24), generator=g))
    for t in (m, TensorMask(m.byte()), TensorMask(m[:,None])):
        y = t.rotate(draw=17, p=1.)
        assert type(y) is TensorMask and y.dtype==t.dtype and y.shape==t.shape and set(y.unique().tolist())<=set(range(7))
    close(m.flip_batch(p=1.), m.flip(-1)), close(m.affine_coord(sz=12).shape, (4,12,12))
    assert m.affine_coord() is m
    soft = AffineCoordTfm([Rotate(draw=17, p=1.)], mode_mask='bilinear')
    assert not torch.equal(soft(m, split_idx=0), m.rotate(draw=17, p=1.))

@pytest.mark.parametrize('t', [Flip(p=1.), Dihedral(p=1., draw=5), Rotate(draw=20, p=1.), Zoom(draw=1.2, draw_x=.3, draw_y=.6, p=1.),
    Warp(draw_x=.15, draw_y=-.1, p=1.), RandomResizedCropGPU(24, .6)], ids=lambda o: o.name)
@pytest.mark.parametrize('shape', [(33,33),(25,49)])
def test_points_and_masks_follow_pictures(t, shape):
    if isinstance(t, Dihedral) and shape[0]!=shape[1]: shape = shape[0],shape[0] # else there is a second one, by reflection
    h,w = shape
    im,mask = torch.zeros(1, 1, h, w),torch.zeros(1, h, w)
    im[...,14:17,18:21] = 1
    mask[...,14:17,18:21] = 1
    p = tensor([[[19/(w-1)*2-1, 15/(h-1)*2-1]]])
    y,m,q = t((TensorImage(im),TensorMask(mask.long()),TensorPoint(p)), split_idx=0)
    H,W = y.shape[-2:]
    def centre(o): # of all that is lit, in -1…1
        o = o.float()/o.sum()
        return [(o.sum(0)*torch.linspace(-1, 1, W)).sum(), (o.sum(1)*torch.linspace(-1, 1, H)).sum()]
    close(tensor(centre(plain(y)[0,0])), plain(q)[0,0], .03)
    close(tensor(centre(plain(m)[0])), plain(q)[0,0], .1)
    assert type(q) is TensorPoint and type(m) is TensorMask and m.shape==y.shape[:1]+y.shape[2:]

def test_points_stay_between_minus_one_and_one():
    p = TensorPoint(torch.rand(4, 50, 2, generator=g)*2-1)
    _,q = AffineCoordTfm([Zoom(draw=2., p=1.), Rotate(draw=45, p=1.)])((x, p), split_idx=0)
    assert q.abs().max()<=1 and (plain(q).abs()==1).any() and p.affine_coord() is p
    assert (x, p)[1].rotate(draw=90, p=1.).shape==p.shape

# --- each transform

def test_flip():
    close(x.flip_batch(p=1.), plain(x).flip(-1), 1e-5)
    close(x.flip_batch(draw=[1,0,1,0], p=1.), torch.stack([o.flip(-1) if i%2==0 else o for i,o in enumerate(plain(x))]), 1e-5)
    assert torch.equal(plain(x.flip_batch(p=0.)), plain(x.affine_coord(tensor([[[1.,0,0],[0,1,0]]]).expand(4, 2, 3))))

def test_dihedral_are_the_eight_of_a_square():
    def by_hand(o, k):
        if k in (1,3,4,7): o = o.flip(-1)
        if k in (2,4,5,7): o = o.flip(-2)
        return o.transpose(-1,-2) if k in (3,5,6,7) else o
    found = [plain(x.dihedral_batch(draw=k, p=1.)) for k in range(8)]
    for a in found: assert sum(any((a-by_hand(plain(x), k)).abs().max()<1e-4 for k in [k]) for k in range(8))==1
    assert all((a-b).abs().max()>.1 for i,a in enumerate(found) for b in found[:i])
    ks = {tuple(m.flatten().tolist()) for m in Dihedral(p=1.).mat(torch.zeros(400, 1), Draws(range(400)))}
    assert len(ks)==8

def test_rotate_by_a_known_grid():
    c,s = math.cos(math.radians(10)),math.sin(math.radians(10))
    close(x.rotate(draw=10, p=1.), theirs(x, [[c,s,0],[-s,c,0]]), 1e-4)
    close(wide.rotate(draw=10, p=1.), theirs(wide, [[c,s/2,0],[-s*2,c,0]]), 1e-4) # a turn is one in pixels
    close(x.rotate(draw=90, p=1.), torch.rot90(plain(x), -1, (2,3)), 1e-4)

def test_random_angles_are_within_bounds_and_reach_them():
    def angles(**kwargs): return torch.atan2(*(Rotate(**kwargs).mat(torch.zeros(2000, 1), Draws(range(2000)))[:,0,i] for i in (1,0))).rad2deg()
    a = angles(max_deg=30, p=1.)
    assert a.abs().max()<=30.01 and a.max()>29 and a.min()<-29 and abs(a.mean())<1
    assert .22<(angles(max_deg=30, p=.25)!=0).float().mean()<.28
    assert (angles(max_deg=30, p=1., batch=True)==angles(max_deg=30, p=1., batch=True)[0]).all()

def test_zoom():
    def mats(**kwargs): return Zoom(**kwargs).mat(torch.zeros(2000, 1), Draws(range(2000)))
    f = 1/mats(min_zoom=.8, max_zoom=1.5, p=1.)[:,0,0]
    assert .8<=f.min()<.81 and 1.49<f.max()<=1.5001 and (mats(p=0.)==torch.eye(3)).all()
    close(mats(draw=2., draw_x=0., draw_y=1., p=1.)[0], tensor([[.5,0,-.5],[0,.5,.5],[0,0,1.]]))
    close(x.zoom(draw=2., draw_x=0., draw_y=1., p=1.), theirs(x, [[.5,0,-.5],[0,.5,.5]]), 1e-5)
    with pytest.raises(ValueError, match='`min_zoom` is at most `max_zoom`, not 2 and 1'): Zoom(2, 1)

def test_warp_moves_the_corners():
    p = TensorPoint(tensor([[[-1.,-1],[-1,1],[1,-1],[1,1],[0,0]]]))
    q = p.affine_coord(Warp(draw_x=-.2, draw_y=.1, p=1.).mat(p, Draws([0])))
    close(plain(q)[0,:4], tensor([[-1.1,-.8],[-.9,.8],[1.1,-1.2],[.9,1.2]]), 1e-5)
    def tilt(**kwargs): return torch.linalg.inv(Warp(**kwargs).mat(torch.zeros(2000, 1), Draws(range(2000))))[:,2,:2]
    assert .299<tilt(magnitude=.3, p=1.).abs().max()<=.3001 and .45<(tilt(p=.5)!=0).float().mean()<.55

def test_random_resized_crop():
    def box(shape=(20,40), n=3000, **kwargs): # Height and width in pixels, left and top
        m = RandomResizedCropGPU(8, **kwargs).mat(torch.zeros(n, 1, *shape), Draws(range(n)))
        h,w = shape
        bh,bw = m[:,1,1]*(h-1)+1,m[:,0,0]*(w-1)+1
        return bh,bw,(m[:,0,2]+1)/2*(w-1)-(bw-1)/2,(m[:,1,2]+1)/2*(h-1)-(bh-1)/2
    h,w,l,t = box(min_scale=.2, max_scale=.5)
    assert .17<(h*w/800).min()<.22 and .45<(h*w/800).max()<.54 and (w/h).min()>.65 and (w/h).max()<1.5
    assert l.min()>-.01 and (l+w).max()<40.01 and t.min()>-.01 and (t+h).max()<20.01 and l.max()>20 and l.min()<2
    h,w,*_ = box(min_scale=.5, ratio=(2,2))
    close((w/h), torch.full((3000,), 2.), .11)
    assert len(box(batch=True)[1].unique())==1
    h,w,l,t = box((10,40), n=2, min_scale=.99, ratio=(1,1)) # no box of this shape is so large: the middle
    close(tensor([h[0],w[0],l[0],t[0]]), tensor([10.,10,15,0]), 1e-3)

def test_random_resized_crop_is_a_crop_of_whole_pixels_resized():
    x = TensorImage(torch.rand(1, 3, 40, 60, generator=g))
    t = RandomResizedCropGPU((10,15), ratio=(1.5,1.5))
    close(t(x, split_idx=1), x.affine_coord(sz=(10,15)), 1e-5) # the same shape: all of it
    t = RandomResizedCropGPU(20, ratio=(1,1), valid_scale=.5)
    close(t(x, split_idx=1), plain(x)[...,10:30,20:40], 1e-5)
    t = RandomResizedCropGPU(20, ratio=(1,1), valid_scale=.5, align_corners=False)
    close(t(x, split_idx=1), plain(x)[...,10:30,20:40], 1e-5)

def test_brightness_contrast():
    l = plain(x).clamp(1e-7, 1-1e-7).logit()
    close(x.brightness(draw=.7, p=1.), (l+math.log(.7/.3)).sigmoid(), 1e-4)
    close(x.contrast(draw=1.5, p=1.), (l*1.5).sigmoid(), 1e-4)
    close(x.brightness(p=0.), x, 1e-4), close(x.contrast(p=0.), x, 1e-4)
    def drawn(t): return t.amount(torch.zeros(3000, 3), Draws(range(3000)))
    b = drawn(Brightness(.4, p=1.)).sigmoid()
    assert .3<=b.min()<.302 and .698<b.max()<=.7001
    c = drawn(Contrast(.4, p=1.))
    assert .6<=c.min()<.602 and 1.66<c.max()<1.667 and .48<(c<1).float().mean()<.52 and .7<(drawn(Contrast(p=.75))!=1).float().mean()<.8
    assert len(drawn(Brightness(p=1., batch=True)).unique())==1
    white = TensorImage(torch.ones(1, 1, 2, 2))
    assert 0<(1-white.brightness(draw=.4, p=1.)).min()<1e-5 and type(TensorImageBW(white).contrast(p=1.)) is TensorImageBW

def test_saturation_and_hue():
    l,grey = plain(x).logit(),tensor([.2989,.5870,.1140])
    close(x.saturation(draw=.3, p=1.), (.3*l+.7*(l*grey[:,None,None]).sum(1, keepdim=True)).sigmoid(), 1e-4)
    close(x.hue(draw=.4, p=1.), shift_hue(plain(x), torch.full((4,), .4)), 1e-5)
    close(x.hue(p=0.), x, 1e-5), close(x.hue(draw=1., p=1.), x, 1e-4)
    import colorsys
    want = [colorsys.hsv_to_rgb((h+.4)%1, s, v) for h,s,v in (colorsys.rgb_to_hsv(*o) for o in plain(x)[0].flatten(1).T.tolist())]
    close(x.hue(draw=.4, p=1.)[0].flatten(1).T, tensor(want), 1e-4)
    bw = TensorImageBW(x[:,:1])
    close(bw.hue(draw=.4, p=1.), bw), close(bw.saturation(draw=.1, p=1.), bw)
    far = TensorImage(tensor([1.,0,0]).view(1,3,1,1).expand(500,3,1,1)).hue(max_hue=.3, p=1.)
    assert far.amax(dim=1).min()>.99 and len(plain(far).unique(dim=0))>400
    s = Saturation(.4, p=1.).amount(torch.zeros(3000, 3), Draws(range(3000)))
    assert .6<=s.min()<.602 and 1.66<s.max()<1.667

def test_random_erasing():
    base = TensorImage(torch.full((400, 3, 20, 30), 7.))
    def share(**kwargs): return (plain(RandomErasing(**kwargs)(base, split_idx=0))!=7).any(1).float().mean((1,2))
    s = share(p=.25)
    assert .18<(s>0).float().mean()<.32 and share(p=1., sl=.2, sh=.25).min()>.15 and share(p=1., sh=.1).max()<.14
    s = plain(RandomErasing(p=1., sl=.2, min_aspect=.2)(base, split_idx=0))!=7
    tall = s.any(1).any(2).sum(1)/s.any(1).any(1).sum(1) # height by width
    assert tall.max()>3 and tall.min()<.34
    s = plain(RandomErasing(p=1., sl=.2, min_aspect=1.)(base, split_idx=0))!=7
    tall = s.any(1).any(2).sum(1)/s.any(1).any(1).sum(1)
    assert tall.min()>.7 and tall.max()<1.4
    def rows(**kwargs): # of how many boxes at the most, seen as changes along the middle of the columns
        y = (plain(RandomErasing(p=1., sl=.3, **kwargs)(base, split_idx=0))!=7).any(1)
        return (y.any(1).int().diff(dim=1)==1).sum(1).max()+1
    assert rows(max_count=1)<=2 and rows(max_count=8)>2
    y = plain(RandomErasing(p=1.)(base, split_idx=0))
    noise = y[y!=7]
    assert abs(noise.mean())<.1 and abs(noise.std()-1)<.1 and (plain(base)==7).all()
    t = RandomErasing(p=1.)
    assert t(base, split_idx=1) is base and t.order>Normalize().order

# --- random numbers

def test_draws_depend_on_the_key_alone():
    a,b = Draws([3,1,2]),Draws([2,3])
    for _ in range(3):
        u,v = a.uniform(-2, 5),b.uniform(-2, 5)
        assert u[0]==v[1] and u[2]==v[0] and u[0]!=u[1] and -2<=u.min() and u.max()<5
    many = torch.stack([(d := Draws(range(5000))).uniform(), d.uniform()]) # neighbouring keys
    assert abs(many.mean()-.5)<.01 and abs(many.var()-1/12)<.003 and torch.corrcoef(many)[0,1].abs()<.03
    assert torch.corrcoef(torch.stack([many[0,:-1], many[0,1:]]))[0,1].abs()<.03
    assert len(Draws(range(5)).uniform(same=True).unique())==1
    r = Draws(range(5000)).ratio(.5, 2.)
    assert .5<=r.min() and r.max()<=2 and abs((r<1).float().mean()-.5)<.03

def test_without_a_loader_the_global_seed_decides():
    def go(seed):
        set_seed(seed)
        return plain(x.rotate(max_deg=40, p=1.))
    assert torch.equal(go(1), go(1)) and not torch.equal(go(1), go(2))
    one,two = x.rotate(p=1.),x.rotate(p=1.)
    assert not torch.equal(plain(one), plain(two))

def test_keys_are_for_one_batch():
    t = Rotate(max_deg=40, p=1.)
    t.reseed([1,2,3,4])
    a = t(x, split_idx=0)
    b = t(x, split_idx=0)
    t.reseed([1,2,3,4])
    assert torch.equal(plain(a), plain(t(x, split_idx=0))) and not torch.equal(plain(a), plain(b)) and t.keys is None
    t.reseed([9])
    assert t(x, split_idx=0).shape==x.shape # a batch of other items than the loader's

def test_rand_transform_draws_once_for_all_parts():
    class Sign(RandTransform):
        order,seen = 2,()
        def before_call(self, b, split_idx):
            super().before_call(b, split_idx)
            self.seen = (*self.seen, split_idx)
        def encodes(self, o:int): return -o
    t = Sign(p=.5)
    got = {t((1,2,3), split_idx=0) for _ in range(50)}
    assert got=={(1,2,3),(-1,-2,-3)} and t((1,), split_idx=1)==(1,) and t((1,))==(1,) and set(t.seen)=={0}
    assert Sign()((1,2), split_idx=0)==(-1,-2) and Sign(split_idx=1)((1,2), split_idx=1)==(-1,-2)

@pytest.fixture(scope='module')
def few(doodles_path): return doodles(n_train=20, n_valid=10, size=40)

@pytest.fixture(scope='module')
def block():
    return DataBlock((ImageBlock, CategoryBlock), get_items=ImageGetter(folders=['train','val']), get_y=parent_label,
        splitter=GrandparentSplitter(valid_name='val'), item_tfms=Resize(40, method='squish'))

def loaded(block, path, bs=8, n_workers=0, tfms=None, epochs=1, **kwargs):
    tfms = tfms or [*aug_transforms(size=24, min_scale=.5), RandomErasing(p=1.)]
    with block.new(batch_tfms=tfms).dataloaders(path, bs=bs, num_workers=n_workers, device='cpu', seed=3, drop_last=False, **kwargs).train as dl:
        for _ in range(epochs): res = torch.cat([plain(b[0]) for b in dl])
        return res

def test_loader_repeats_for_any_batch_size_and_workers(block, few):
    a = loaded(block, few)
    assert torch.allclose(a, loaded(block, few, bs=5), atol=1e-4)
    assert torch.equal(a, loaded(block, few, n_workers=2))
    assert not torch.allclose(a, loaded(block, few, epochs=2), atol=.1)
    again = loaded(block, few, epochs=2, shuffle=False)
    assert not torch.allclose(again, loaded(block, few, shuffle=False), atol=.1)

def test_loader_goes_on_in_the_middle(block, few):
    dl = block.new(batch_tfms=aug_transforms(size=24)).dataloaders(few, bs=6, num_workers=0, seed=3, device='cpu').train
    it = iter(dl)
    next(it)
    state = dl.state_dict()
    want = [plain(b[0]) for b in it]
    new = block.new(batch_tfms=aug_transforms(size=24)).dataloaders(few, bs=6, num_workers=0, seed=7, device='cpu').train
    new.load_state_dict(state)
    got = [plain(b[0]) for b in new]
    assert want and len(want)==len(got) and all(map(torch.equal, want, got))

def test_two_transforms_of_one_kind_draw_differently(block, few):
    class Keep(RandTransform):
        order,got = 50,[]
        def before_call(self, b, split_idx):
            self.do = False
            if split_idx==0: self.got.append(self.draws(len(b[0])).uniform())
    loaded(block, few, bs=20, tfms=[Keep(), type('Keep2', (Keep,), {})()])
    a,b = Keep.got
    assert not torch.equal(a, b) and len(a.unique())==20

def test_a_file_left_out_does_not_shift_the_others(tmp_path, few, block):
    import shutil
    shutil.copytree(few, tmp_path/'d')
    bad = get_image_files(tmp_path/'d/train').sorted()[0]
    want = loaded(block, tmp_path/'d', shuffle=False)
    i = [str(o) for o in block.datasets(tmp_path/'d').train.items].index(str(bad))
    bad.write_bytes(b'no picture')
    with pytest.warns(UserWarning, match='1 of .* items were left out'): got = loaded(block, tmp_path/'d', shuffle=False, skip_bad=True)
    assert torch.allclose(got, torch.cat([want[:i], want[i+1:]]), atol=1e-4)

def test_same_picture_many_times(block, few):
    dl = block.new(batch_tfms=aug_transforms(size=24)).dataloaders(few, bs=6, num_workers=0, device='cpu').train
    items = dl.show_batch(unique=True, max_n=5, show=False)
    assert len(items)==5 and len({o[0].sum().item() for o in items})==5 and len({o[1] for o in items})==1

# --- one for all

def test_joined_is_one_after_the_other():
    a,b = Rotate(draw=20, p=1.),Zoom(draw=1.3, draw_x=.2, draw_y=.9, p=1.)
    smooth = TensorImage(F.interpolate(torch.rand(4, 3, 4, 4, generator=g), size=(65,65), mode='bicubic', align_corners=True))
    one,two = AffineCoordTfm.joined([a, b])(smooth, split_idx=0),b(a(smooth, split_idx=0), split_idx=0)
    close(plain(one)[...,8:-8,8:-8], plain(two)[...,8:-8,8:-8], .02)
    one = AffineCoordTfm.joined([Warp(draw_x=.2, draw_y=.1, p=1.), Flip(p=1.)])(smooth, split_idx=0)
    two = Flip(p=1.)(Warp(draw_x=.2, draw_y=.1, p=1.)(smooth, split_idx=0), split_idx=0)
    close(plain(one), plain(two), .02)
    a,b = Brightness(draw=.6, p=1.),Saturation(draw=.2, p=1.)
    close(LightingTfm.joined([a, b])(x, split_idx=0), b(a(x, split_idx=0), split_idx=0), 1e-3)

def test_setup_aug_tfms():
    n = Normalize()
    fs = setup_aug_tfms([Brightness, n, Rotate(size=8), Contrast(), Zoom(size=9, mode='nearest'), Flip, Hue])
    assert [type(o).__name__ for o in fs]==['AffineCoordTfm','LightingTfm','Normalize'] and fs[2] is n
    assert fs[0].parts.map(type)==[Rotate,Zoom,Flip] and fs[0].size==(9,9) and fs[0].mode=='bilinear'
    assert fs[1].parts.map(type)==[Brightness,Contrast,Hue] and setup_aug_tfms([])==[] and setup_aug_tfms([n])==[n]
    again = setup_aug_tfms([*fs, Warp()])
    assert again[0].parts.map(type)==[Rotate,Zoom,Flip,Warp] and fs[0].parts.map(type)==[Rotate,Zoom,Flip]
    assert 'Rotate' in repr(fs[0]) and repr(AffineCoordTfm()) and setup_aug_tfms([Rotate(mode='nearest'), Flip()])[0].mode=='nearest'

def parts(*args, **kwargs): return {type(p).__name__: p for f in aug_transforms(*args, **kwargs) for p in getattr(f, 'parts', [f])}

def test_aug_transforms_defaults_and_each_argument():
    p = parts()
    assert list(p)==['Flip','Warp','Rotate','Zoom','Brightness','Contrast']
    assert (p['Flip'].p,p['Warp'].magnitude,p['Warp'].p,p['Rotate'].max_deg,p['Rotate'].p)==(.5,.2,.75,10,.75)
    assert (p['Zoom'].min_zoom,p['Zoom'].max_zoom,p['Zoom'].p,p['Brightness'].max_lighting,p['Contrast'].p)==(1,1.1,.75,.2,.75)
    p = parts(2.)
    assert (p['Warp'].magnitude,p['Rotate'].max_deg,p['Contrast'].max_lighting,p['Zoom'].max_zoom)==(.4,20,.4,1.1)
    assert 'Flip' not in parts(do_flip=False) and 'Dihedral' in parts(flip_vert=True) and 'Dihedral' not in parts(do_flip=False, flip_vert=True)
    assert 'Rotate' not in parts(max_rotate=0) and parts(max_rotate=3)['Rotate'].max_deg==3
    assert 'Zoom' not in parts(max_zoom=1.) and parts(min_zoom=.5)['Zoom'].min_zoom==.5 and parts(max_zoom=2.)['Zoom'].max_zoom==2
    assert not {'Brightness','Contrast'} & set(parts(max_lighting=0)) and 'Warp' not in parts(max_warp=0)
    p = parts(p_affine=.1, p_lighting=.2)
    assert {p[k].p for k in ('Warp','Rotate','Zoom')}=={.1} and {p[k].p for k in ('Brightness','Contrast')}=={.2} and p['Flip'].p==.5
    assert 'RandomErasing' in parts(xtra_tfms=RandomErasing()) and 'Hue' in parts(xtra_tfms=[Hue(), RandomErasing])
    f,l = aug_transforms(size=(12,16), mode='nearest', pad_mode='zeros', align_corners=False, batch=True)
    assert (f.size,f.mode,f.pad_mode,f.align_corners)==((12,16),'nearest','zeros',False) and all(o.batch for o in f.parts+l.parts)
    assert aug_transforms(mult=0., do_flip=False, max_zoom=1.)==[] and aug_transforms(mult=0., do_flip=False, max_zoom=1., size=5)[0].size==(5,5)
    p = parts(size=(12,16), min_scale=.4)
    assert p['RandomResizedCropGPU'].min_scale==.4 and p['RandomResizedCropGPU'].ratio==[16/12]*2
    with pytest.raises(ValueError, match='`min_scale` is for boxes, and `size` says'): aug_transforms(min_scale=.5)

def test_training_only_and_the_middle_in_validation():
    y = TensorImage(torch.rand(2, 3, 40, 60, generator=g))
    for f in aug_transforms(): assert f(y, split_idx=1) is y
    move,light = aug_transforms(size=20, min_scale=.3)
    close(move(y, split_idx=1), TensorImage(plain(y)[...,10:50]).affine_coord(sz=20), 1e-4)
    assert light(y, split_idx=1) is y and move(y, split_idx=0).shape==(2,3,20,20)
    close(aug_transforms(size=20)[0](y, split_idx=1), y.affine_coord(sz=20), 1e-5)
    assert not torch.equal(plain(move(y, split_idx=0)), plain(move(y, split_idx=1)))

def test_batch_draws_once():
    same = TensorImage(plain(x)[:1].repeat(6, 1, 1, 1))
    for t in (*aug_transforms(batch=True, p_affine=1., p_lighting=1.), RandomResizedCropGPU(9, batch=True), Hue(batch=True, p=1.)):
        y = plain(t(same, split_idx=0))
        close(y, y[:1].expand_as(y), 1e-4)
    y = plain(aug_transforms(p_affine=1.)[0](same, split_idx=0))
    assert len(y.sum((1,2,3)).unique())==6

def test_draw_may_be_a_number_a_list_or_a_function():
    a = x.rotate(draw=lambda o: torch.arange(len(o))*10., p=1.)
    close(a, x.rotate(draw=[0,10,20,30,40,50], p=1.), 1e-6)
    close(a[1:2], TensorImage(x[1:2]).rotate(draw=10, p=1.), 1e-5)
    with pytest.raises(ValueError, match='`draw` has 2 numbers for 4 items'): x.rotate(draw=[1,2], p=1.)

def test_normalize_runs_last_wherever_it_is_listed(block, few):
    b = block.new(batch_tfms=[Normalize(*imagenet_stats), *aug_transforms(size=24)])
    names = [type(o).__name__ for o in b.dataloaders(few, bs=4, num_workers=0).train.after_batch]
    assert names==['IntToFloatTensor','AffineCoordTfm','LightingTfm','Normalize']

def test_other_parts_and_other_batches_pass():
    y = (x, tensor([1,2,3,4]), 'a')
    out = aug_transforms()[0](y, split_idx=0)
    assert out[1] is y[1] and out[2]=='a' and type(out) is tuple
    plain_batch = (torch.rand(3), torch.rand(3, 4))
    for f in (*aug_transforms(size=4), RandomErasing()): assert f(plain_batch, split_idx=0)[1] is plain_batch[1]
    pair = ((x, x), tensor([0,1,2,3])) # two pictures of one item are moved alike
    (a,b),_ = Rotate(p=1.)(pair, split_idx=0)
    assert torch.equal(plain(a), plain(b))

def test_faults_in_a_sentence():
    with pytest.raises(ValueError, match=r"`pad_mode` is 'reflection', 'border' or 'zeros', not 'mirror'"): Rotate(pad_mode='mirror')
    with pytest.raises(ValueError, match="`mode` is 'bilinear', 'nearest' or 'bicubic', not 'linear'"): AffineCoordTfm(mode='linear')
    with pytest.raises(ValueError, match=r'Rotate takes a batch of pictures, `\(bs, c, h, w\)`, not \(3, 24, 24\)'): x[0].rotate()
    with pytest.raises(TypeError, match='Brightness takes numbers from 0 to 1, not torch.uint8'): TensorImage((x*255).byte()).brightness()

def test_copies_and_pickles():
    for t in (*aug_transforms(size=12, min_scale=.5), RandomErasing(), Hue()):
        for u in (copy.deepcopy(t), pickle.loads(pickle.dumps(t)), copy.copy(t)):
            for o in (t,u): o.reseed([1,2,3,4])
            assert torch.equal(plain(t(x, split_idx=0)), plain(u(x, split_idx=0)))

def test_the_cell_of_fastbook_5():
    tfms = setup_aug_tfms([Rotate(draw=30, p=1, size=16), Zoom(draw=1.2, p=1., size=16), Warp(draw_x=-0.2, draw_y=0.2, p=1., size=16)])
    y = TensorImage(x.clone())
    y1 = y.affine_coord(sz=16).rotate(draw=30, p=1.).zoom(draw=1.2, p=1.).warp(draw_x=-0.2, draw_y=0.2, p=1.)
    assert Pipeline(tfms)(y).shape==y1.shape==(4,3,16,16)

# --- each argument of `aug_transforms`, by what it does to places and pixels

off = dict(do_flip=False, max_rotate=0., max_zoom=1., max_lighting=0., max_warp=0.)
spots = TensorPoint(tensor([[[-.4,-.4],[.4,-.4],[-.4,.4],[.4,.4],[0,0]]]).repeat(800, 1, 1))

def moved(**kwargs):
    "Where 800 times five points go, and which of the 800 stay as they are"
    set_seed(0)
    q = plain(Pipeline(aug_transforms(**{**off, **kwargs}), 0)(spots))
    return q,(q-plain(spots)).abs().amax((1,2))<1e-5

def lit(grey, n=2000, **kwargs):
    "The colours that `n` pixels of one grey get"
    set_seed(0)
    return plain(Pipeline(aug_transforms(**{**off, **kwargs}), 0)(TensorImage(torch.full((n,1,1,1), grey)))).flatten()

def angle(q): return torch.atan2(q[:,3,1]-q[:,0,1], q[:,3,0]-q[:,0,0]).rad2deg()-45

def test_aug_transforms_do_flip_and_flip_vert():
    assert moved()[1].all()
    q,same = moved(do_flip=True)
    assert .45<same.float().mean()<.55
    close(q[~same], (plain(spots)*tensor([-1,1]))[~same], 1e-5)
    q,same = moved(do_flip=True, flip_vert=True)
    assert .5<same.float().mean()<.62 and len({tuple(o.flatten().mul(10).round().int().tolist()) for o in q})==8

def test_aug_transforms_max_rotate_and_mult():
    for kw,most in ((dict(max_rotate=30.),30),(dict(max_rotate=10., mult=2.),20)):
        a = angle(moved(p_affine=1., **kw)[0])
        assert .97*most<a.max()<most+.01 and -most-.01<a.min()<-.97*most

def test_aug_transforms_min_zoom_and_max_zoom():
    f = (lambda q: q[:,1,0]-q[:,0,0])(moved(min_zoom=.8, max_zoom=1.5, p_affine=1.)[0])/.8
    assert .79<f.min()<.83 and 1.47<f.max()<1.51
    f = (lambda q: q[:,1,0]-q[:,0,0])(moved(max_zoom=1.5, mult=3., p_affine=1.)[0])/.8
    assert .999<f.min() and 1.47<f.max()<1.51

def test_aug_transforms_max_warp_and_mult():
    def tilt(**kwargs): # of the line through two points, which only a warp makes unlike that through the others
        q,_ = moved(p_affine=1., **kwargs)
        top,low = q[:,1]-q[:,0],q[:,3]-q[:,2]
        return (top[:,0]/low[:,0]-1).abs().max()
    assert tilt(max_rotate=20., max_zoom=1.3)<1e-4 and tilt(max_warp=.1)<tilt(max_warp=.2)<tilt(max_warp=.2, mult=1.5)
    close(tilt(max_warp=.15, mult=2.), tilt(max_warp=.3), 1e-5)

@pytest.mark.parametrize('kw', [dict(max_rotate=10.), dict(max_zoom=1.3)], ids=str)
def test_aug_transforms_p_affine(kw):
    for p in (0.,.3,.75,1.): assert abs(moved(p_affine=p, **kw)[1].float().mean()-(1-p))<.05
    assert abs(moved(max_warp=.2, p_affine=.5)[1].float().mean()-.25)<.05 # across and down

def test_aug_transforms_max_lighting_p_lighting_and_mult():
    def bounds(**kwargs): return [f(lit(.5, **kwargs)).item() for f in (torch.min, torch.max)] # contrast leaves .5
    (a,b),(c,d) = bounds(max_lighting=.2, p_lighting=1.),bounds(max_lighting=.2, mult=2., p_lighting=1.)
    assert c<a<.42 and .58<b<d and bounds(max_lighting=.3, p_lighting=0.)==pytest.approx([.5,.5], abs=1e-5)
    for p in (.25,.75): assert abs((lit(.5, max_lighting=.3, p_lighting=p)!=lit(.5, max_lighting=.3, p_lighting=0.)).float().mean()-p)<.04
    far = lit(.8, max_lighting=.3, p_lighting=.5) # of these, brightness or contrast has changed three quarters
    assert abs(((far-.8).abs()>1e-4).float().mean()-.75)<.04

def test_aug_transforms_xtra_tfms():
    bare,more = [Pipeline(aug_transforms(**off, xtra_tfms=o), 0)(x) for o in (None,[RandomErasing(p=1., sl=.2),Hue(max_hue=.4, p=1.)])]
    assert bare is x and (more>1).any() and not torch.equal(plain(more), plain(x))
    assert len(aug_transforms(xtra_tfms=Rotate(40.)))==2 # it joins the others' lookup

def test_aug_transforms_size_mode_pad_mode_and_align_corners():
    ramp = TensorImage(torch.arange(1., 13).expand(300, 1, 12, 12))
    def go(**kwargs):
        set_seed(0)
        return plain(Pipeline(aug_transforms(**{**off, **kwargs}), 0)(ramp))
    for size,shape in ((7,(7,7)),((5,9),(5,9))): assert go(size=size).shape[2:]==shape
    spin = dict(max_rotate=45., p_affine=1.)
    assert len(go(**spin).unique())>1000 and set(go(**spin, mode='nearest').unique().tolist())<=set(range(1, 13))
    assert (go(**spin, pad_mode='zeros')==0).any() and go(**spin).min()>.99 and go(**spin, pad_mode='border').min()>.99
    assert not torch.allclose(go(**spin, pad_mode='border'), go(**spin), atol=.1)
    close(go(size=6)[0], F.interpolate(plain(ramp)[:1], size=(6,6), mode='bilinear', align_corners=True)[0], 1e-4)
    close(go(size=6, align_corners=False)[0], F.interpolate(plain(ramp)[:1], size=(6,6), mode='bilinear', align_corners=False)[0], 1e-4)
    for mode in ('bilinear','bicubic'): assert torch.equal(go(**spin, mode=mode), go(**spin, mode=mode))
    assert not torch.allclose(go(**spin, mode='bicubic'), go(**spin), atol=.05)

def test_aug_transforms_batch():
    kw = dict(do_flip=True, max_rotate=20., max_zoom=1.4, max_warp=.2, p_affine=1.)
    assert (lambda q: (q-q[:1]).abs().max())(moved(**kw, batch=True)[0])<1e-5
    assert (lambda q: (q-q[:1]).abs().max())(moved(**kw)[0])>.2
    assert len(lit(.3, max_lighting=.3, batch=True).unique())==1 and len(lit(.3, max_lighting=.3).unique())>500

def test_aug_transforms_min_scale():
    across = torch.linspace(0, 1, 40).expand(40, 40)
    places = TensorImage(torch.stack([across, across.T]).expand(600, 2, 40, 40))
    set_seed(0)
    y = plain(Pipeline(aug_transforms(**off, size=16, min_scale=.25), 0)(places))
    (w,h) = [y[:,i].amax((1,2))-y[:,i].amin((1,2)) for i in range(2)]
    assert .21<(w*h).min()<.3 and .9<(w*h).max()<=1.01 and (w-h).abs().max()<.03 # a square stays one
    assert y[:,0].amin((1,2)).max()>.3 and y[:,1].amin((1,2)).max()>.3 # at all places
