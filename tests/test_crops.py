"One cut for all parts of an item: sizes, pixels and places; training and validation; every kind of file"
import copy,io,pickle,random

import numpy as np,pytest,torch
from fastcore.all import L,fastuple
from PIL import Image,ImageOps

from scratchai.crops import *
from scratchai.files import *
from scratchai.transform import Pipeline,ToTensor,TransformError
from scratchai.types import *

sizes = (100,80),(80,100),(37,91),(64,64),(250,33)
kinds = [Resize(64), Resize((48,64), 'squish'), Resize((64,48), 'pad'), Resize(31, 'pad', 'zeros'), CropPad((120,40)), RandomCrop(50),
    RandomCrop((20,120)), RandomResizedCrop((40,56), .2), RandomResizedCrop(64, val_xtra=.5)]

def pic(w, h, seed=0, cls=PILImage): return cls.create(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h,w,3) if cls is PILImage else (h,w), dtype=np.uint8)))
def x(im): return np.array(im)
def spot(w, h, px, py):
    "A picture, black but for a square around a point"
    a = np.zeros((h,w,3), np.uint8)
    a[max(0,py-3):py+3,max(0,px-3):px+3] = 255
    return PILImage.create(a)
def jpeg(w, h, orientation=None, mode='RGB', quality=95):
    exif = Image.Exif()
    if orientation: exif[0x112] = orientation
    im = Image.effect_noise((w//8, h//8), 80).resize((w,h), Image.BICUBIC).convert(mode)
    im.save(f := io.BytesIO(), 'JPEG', exif=exif, quality=quality)
    return f.getvalue()

@pytest.mark.parametrize('tfm', kinds, ids=str)
def test_sizes(tfm):
    "The size asked for, the class and integers kept, and other parts untouched; a bare picture works as well"
    h,w = tfm.size
    other = object()
    for s in sizes:
        for split in (0,1,None):
            im,m = pic(*s),pic(*s, cls=PILMask)
            a,b,t,n,o = tfm((im,m,torch.ones(3),7,other), split_idx=split)
            assert a.size==b.size==(w,h) and type(a) is PILImage and type(b) is PILMask and set(np.unique(x(b)))<={0,*np.unique(x(m))}
            assert t.tolist()==[1,1,1] and n==7 and o is other
            assert type(tfm(im, split_idx=split)) is PILImage and tfm(im, split_idx=split).size==(w,h)
            assert im.size==s
    assert type(tfm(Image.new('RGB', (90,70)), split_idx=1)) is Image.Image

@pytest.mark.parametrize('tfm', [*kinds,FlipItem(1)], ids=str)
def test_one_draw(tfm):
    "Picture, mask and a second picture are cut alike, in training too, in nested and named tuples"
    for s in sizes:
        for i in range(8):
            g = pic(*s, i, cls=PILMask)
            im = PILImage.create(Image.merge('RGB', [Image.fromarray(x(g))]*3))
            a,(b,c) = tfm((im,(im.copy(),g)), split_idx=0)
            assert np.array_equal(x(a), x(b))
            if isinstance(tfm, (RandomCrop,CropPad,FlipItem)): assert np.array_equal(x(a)[...,0], x(c))
    res = tfm(fastuple(pic(90,70), pic(50,70), True), split_idx=0)
    assert type(res) is fastuple and res[2] is True and (isinstance(tfm, FlipItem) or res[0].size==res[1].size)

@pytest.mark.parametrize('tfm', [*kinds,FlipItem(1)], ids=str)
def test_points(tfm):
    "A point stays on what it was on"
    for s in ((100,80),(64,64),(120,160)):
        for i in range(12):
            px,py = random.randrange(10,s[0]-10),random.randrange(10,s[1]-10)
            im,p = tfm((spot(*s, px, py),TensorPoint.create([[px,py],[0,0]])), split_idx=0 if isinstance(tfm, FlipItem) else i%2)
            assert type(p) is TensorPoint and p.shape==(2,2) and p.img_size==im.size
            a,(u,v) = x(im)[...,0].astype(float),p[0].tolist()
            if not (8<u<im.width-8 and 8<v<im.height-8) or a.max()<100: continue
            m = a>a.max()/2
            if isinstance(tfm, Resize) and tfm.method=='pad' and tfm.pad_mode=='reflection': m[:max(0,int(v)-9)] = m[int(v)+9:] = False
            ys,xs = np.nonzero(m)
            assert abs(xs.mean()+.5-u)<1 and abs(ys.mean()+.5-v)<1, (s,px,py)
    p = TensorPoint.create([3,4])
    assert TensorPoint.create(tfm((p,pic(100,80)), split_idx=0)[0]).shape==(1,2) # before the picture
    with pytest.raises(ValueError, match='points without a picture'): tfm((p,3), split_idx=0)

def test_draws():
    "Training draws; validation does not, nor does it use up random numbers"
    im = pic(100,80)
    for tfm in kinds+[FlipItem(.5)]:
        before = random.getstate()
        a = tfm(im, split_idx=1)
        assert np.array_equal(x(tfm(im, split_idx=1)), x(a)) and random.getstate()==before, tfm
        outs = {x(tfm(im, split_idx=0)).tobytes() for _ in range(20)}
        draws = Pipeline(tfm).draws(0)
        assert (len(outs)>1)==draws==(random.getstate()!=before), tfm
        assert not Pipeline(tfm).draws(1), tfm
        if draws: # the same seed, the same item
            random.seed(5)
            b = x(tfm(im, split_idx=0))
            random.seed(5)
            assert np.array_equal(x(tfm(im, split_idx=0)), b)
        assert tfm.order==1 and type(pickle.loads(pickle.dumps(tfm))) is type(copy.deepcopy(tfm)) is type(tfm)
    assert len({x(RandomCrop(50)(im)).tobytes() for _ in range(20)})>1 # of no split: as in training

def test_resize():
    for s in sizes:
        im = pic(*s)
        assert np.array_equal(x(Resize((48,64), 'squish')(im)), x(im.resize((64,48), Image.BILINEAR)))
        assert np.array_equal(x(Resize(40, 'squish', resamples=(Image.BICUBIC,Image.NEAREST))(im)), x(im.resize((40,40), Image.BICUBIC)))
    im = pic(100,80)
    assert np.array_equal(x(Resize(64)(im, split_idx=1)), x(im.crop((10,0,90,80)).resize((64,64), Image.BILINEAR)))
    assert np.array_equal(x(Resize(64, 'pad', 'zeros')(im, split_idx=1)), x(im.crop((0,-10,100,90)).resize((64,64), Image.BILINEAR)))
    m = pic(100,80, cls=PILMask)
    for f in (Image.NEAREST,Image.BOX): assert np.array_equal(x(Resize(64, 'squish', resamples=(Image.BILINEAR,f))(m)), x(m.resize((64,64), f)))
    t,found = Resize(80),set()
    t.before_call(im, 1)
    assert t.cut(100, 80).box==(10,0,80,80)
    for _ in range(400):
        t.before_call(im, 0)
        found.add(t.cut(100, 80).box)
    assert {b[0] for b in found}==set(range(20)) and {b[1:] for b in found}=={(0,80,80)}
    for w,h in ((1000,2),(1,300),(7,7)): assert Resize(64)(Image.new('RGB', (w,h)), split_idx=0).size==(64,64)

def test_pads():
    a = np.arange(1,7, dtype=np.uint8).reshape(2,3)
    for mode,first,last in (('zeros',[0,0,0],[0,0,0]), ('border',[1,2,3],[4,5,6]), ('reflection',[4,5,6],[1,2,3])):
        res = x(crop_pad(Image.fromarray(a), (0,-1,3,4), mode))
        assert res.tolist()==[first,*a.tolist(),last], mode
        assert np.array_equal(x(CropPad((4,3), mode)(PILMask.create(a))), res)
        big = x(crop_pad(Image.fromarray(a), (-20,-9,40,19), mode)) # much more than there is to mirror
        assert big.shape==(19,40) and np.array_equal(big[9:11,20:23], a)
    assert crop_pad(Image.fromarray(a), (1,1,2,1)).size==(2,1)
    assert [ResizeMethod.Squish,ResizeMethod.Crop,ResizeMethod.Pad]==['squish','crop','pad'] and [PadMode.Zeros,PadMode.Border,PadMode.Reflection]==['zeros','border','reflection']
    assert Resize(9, ResizeMethod.Pad, pad_mode=PadMode.Border)(pic(10,20)).size==(9,9)

def test_crop_places():
    "Every place is found, in the picture where there is room, with the whole picture in where there is none"
    for size,s,lefts,tops in ((30,(33,40),range(4),range(11)), ((30,50),(40,33),range(-10,0),range(4))):
        t,found = RandomCrop(size),set()
        for _ in range(600):
            t.before_call(Image.new('RGB', s), 0)
            found.add(t.cut(*s).box)
        assert {b[0] for b in found}==set(lefts) and {b[1] for b in found}==set(tops)
        t.before_call(None, 1)
        assert t.cut(*s).box==CropPad(size).cut(*s).box==((s[0]-t.size[1])//2,(s[1]-t.size[0])//2,*t.size[::-1])

def boxes(tfm, s=(120,80), n=1000):
    res = []
    for _ in range(n):
        tfm.before_call(None, 0)
        res.append(tfm.cut(*s).box)
    return np.array(res).T

def test_random_resized_crop():
    l,t,w,h = boxes(RandomResizedCrop(64))
    assert l.min()>=0 and t.min()>=0 and (l+w).max()<=120 and (t+h).max()<=80 and len(set(l))>40
    share,ratio = w*h/9600,w/h
    assert .07<share.min()<.1 and share.max()>.7 and .7<ratio.min()<.8 and 1.25<ratio.max()<1.4
    assert (boxes(RandomResizedCrop(64, min_scale=.5))[2:].prod(0)/9600).min()>.47
    assert (boxes(RandomResizedCrop(64, max_scale=.2))[2:].prod(0)/9600).max()<.22
    l,t,w,h = boxes(RandomResizedCrop(64, ratio=(2,2)))
    assert abs(w/h-2).max()<.15
    for s,want in (((400,20),(187,0,26,20)), ((20,400),(0,187,20,26)), ((100,90),(0,0,100,90))): # no draw fits: the largest box in the middle
        tfm = RandomResizedCrop(64, min_scale=1.)
        assert set(map(tuple, boxes(tfm, s, 9).T)) in ({want},) or s==(100,90)
    im = pic(120,80)
    for size,extra in ((64,16),((40,56),8)): # as fastai: 14 % more, up to a multiple of 8
        h,w = (size,size) if size==64 else size
        big = im.resize((w+extra,h+extra), Image.BILINEAR)
        assert np.array_equal(x(RandomResizedCrop(size)(im, split_idx=1)), x(big)[extra//2:extra//2+h,extra//2:extra//2+w])
    assert np.array_equal(x(RandomResizedCrop(64, val_xtra=0)(im, split_idx=1)), x(im.resize((64,64), Image.BILINEAR)))
    m = pic(120,80, cls=PILMask)
    assert np.array_equal(x(RandomResizedCrop(64, val_xtra=0, resamples=(0,Image.BILINEAR))(m, split_idx=1)), x(m.resize((64,64), Image.BILINEAR)))

def test_flip():
    im,p = pic(30,20),TensorPoint.create([[4,5.]])
    a,q = FlipItem(1)((im,p), split_idx=0)
    assert np.array_equal(x(a), x(im)[:,::-1]) and q.tolist()==[[26,5]] and type(a) is PILImage
    for f,split in ((FlipItem(0),0),(FlipItem(1),1),(FlipItem(1),None)): assert np.array_equal(x(f(im, split_idx=split)), x(im))
    n = sum(not np.array_equal(x(FlipItem(.3)(im, split_idx=0)), x(im)) for _ in range(300))
    assert 50<n<130

files = dict(plain=jpeg(160,120), big=jpeg(1000,600), turned=jpeg(600,400,6), mirrored=jpeg(300,500,5), grey=jpeg(400,300,mode='L'), cmyk=jpeg(300,400,mode='CMYK'))
@pytest.mark.parametrize('k', files)
def test_files(k, tmp_path):
    "A squish is `open_image`'s to the last bit; what is decoded at less is nearly what the whole gives; the picture given stays"
    (fn := tmp_path/'a.jpg').write_bytes(files[k])
    for src in (fn, str(fn), files[k], io.BytesIO(files[k])):
        for size in (64,(48,96),31,300): assert np.array_equal(x(Resize(size, 'squish')(PILImage.create(src))), x(open_image(src, size)))
    whole = open_image(fn)
    for tfm in (Resize(40), Resize((30,60), 'pad', 'zeros'), RandomResizedCrop(48)):
        im = PILImage.create(fn)
        a,b = tfm((im,TensorPoint.create([1,1])), split_idx=1),tfm(PILImage.create(x(whole)), split_idx=1)
        assert a[0].size==b.size and np.abs(x(a[0]).astype(float)-x(b)).mean()<4
        assert im.size==whole.size and np.array_equal(x(im), x(whole)) # not the reduced one
        assert np.array_equal(x(tfm(im, split_idx=1)), x(b))
    im = PILImage.create(fn)
    for _ in range(3): assert np.array_equal(x(Resize(64, 'squish')(im)), x(open_image(fn, 64)))

def test_reduced(monkeypatch):
    "Only as much is decoded as the box needs"
    seen,old,data = [],Image.Image.resize,{s: jpeg(*s) for s in ((1024,512),(1000,800),(512,512))}
    monkeypatch.setattr(Image.Image, 'resize', lambda self, *a, **kw: (seen.append(self.size), old(self, *a, **kw))[1])
    for tfm,size,want in ((Resize(60),(1024,512),(64,64)), (Resize(64, 'squish'),(1024,512),(128,64)), (Resize(65),(1024,512),(128,128)), (Resize(128, 'pad', 'zeros'),(1024,512),(128,128)),
        (RandomResizedCrop(100, val_xtra=0),(1000,800),(125,100)), (Resize(300),(1024,512),(512,512))):
        tfm(PILImage.create(data[size]), split_idx=1)
        assert seen.pop()==want, tfm
    l = RandomCrop(64)(PILImage.create(data[512,512]), split_idx=1) # not scaled: at its own size
    assert not seen and l.size==(64,64)

def test_masks_keep_values():
    "A mask is not decoded at less, which would mix its values"
    a = np.random.default_rng(0).choice([0,80,255], (30,40)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
    Image.fromarray(a).save(f := io.BytesIO(), 'JPEG', quality=100)
    m = PILMask.create(f.getvalue())
    whole = np.array(Image.open(f))
    for size in (64,20): assert set(np.unique(x(Resize(size)(m))))<=set(np.unique(whole))
    im = Image.effect_noise((800,600), 80).convert('RGB')
    im.save(f := io.BytesIO(), 'MPO', save_all=True, append_images=[im])
    assert np.array_equal(x(Resize(64, 'squish')(PILImage.create(f.getvalue()))), x(open_image(f.getvalue(), 64)))

def test_other_files(tmp_path):
    for mode,fmt in (('RGB','PNG'),('L','PNG'),('RGBA','PNG'),('P','GIF'),('RGB','BMP')):
        im = Image.effect_noise((90,60), 80).convert(mode)
        im.save(f := io.BytesIO(), fmt)
        assert np.array_equal(x(Resize(32, 'squish')(PILImage.create(f.getvalue()))), x(open_image(f.getvalue(), 32)))
        assert type(Resize(32)(PILImageBW.create(f.getvalue()))) is PILImageBW
    cut = files['big'][:9000]
    with pytest.raises(OSError): Resize(64)(PILImage.create(cut))

def test_arguments():
    for f in (Resize,CropPad,RandomCrop,RandomResizedCrop):
        for s in (0,-3,2.5,(1,2,3),'64'):
            with pytest.raises(ValueError, match='`size` is a whole number of pixels, or height and width'): f(s)
        assert f(np.int64(9)).size==(9,9) and f([8,9]).size==(8,9)
    with pytest.raises(ValueError, match="`method` is 'squish', 'crop' or 'pad', not 'fit'"): Resize(9, 'fit')
    for f in (Resize,CropPad):
        with pytest.raises(ValueError, match="`pad_mode` is 'zeros', 'border' or 'reflection', not 'reflect'"): f(9, pad_mode='reflect')
    for kw in (dict(min_scale=.5, max_scale=.2), dict(min_scale=-1), dict(ratio=(2,1)), dict(ratio=(0,1)), dict(max_scale=1.5)):
        with pytest.raises(ValueError, match='`(min_scale|ratio)`'): RandomResizedCrop(9, **kw)
    with pytest.raises(ValueError, match='`p` is a share from 0 to 1, not 2'): FlipItem(2)
    assert str(Resize(9)).startswith("Resize -- {'size': (9, 9), 'method': 'crop'") and str(FlipItem())=="FlipItem -- {'p': 0.5}"

def test_own():
    "A reader's transform: `draw` and `cut`"
    class TopHalf(CutTransform):
        random = False
        def draw(self): pass
        def cut(self, w, h): return Cut((0,0,w,h//2), (w,h//2), (w,h//2))
    im = pic(30,20)
    a,p = TopHalf()((im,TensorPoint.create([3,4])), split_idx=0)
    assert np.array_equal(x(a), x(im)[:10]) and p.tolist()==[[3,4]] and not Pipeline(TopHalf()).draws(0)

def test_pipeline():
    "In a pipeline: by order, before tensors; a failure names the transform"
    pipe = Pipeline([ToTensor,FlipItem(),Resize(20)], split_idx=0)
    a,y = pipe((pic(30,40),3))
    assert type(a) is TensorImage and a.shape==(3,20,20) and y==3 and [f.name for f in pipe]==['FlipItem','Resize','ToTensor']
    with pytest.raises(TransformError, match='Resize'): Pipeline(Resize(20))(PILImage.create(files['big'][:9000]))

def test_names_of_all_pillow_images():
    im = Image.effect_noise((40,30), 60).convert('RGB')
    assert (im.shape, im.n_px, im.aspect, im.reshape(3, 4).size, im.to_thumb(20).size, im.to_thumb(10, 40).size)==((30,40), 1200, 4/3, (4,3), (20,15), (13,10))
    assert [im.resize_max(**k).size for k in (dict(max_px=300), dict(max_h=15), dict(max_w=10), {})]==[(20,15), (20,15), (10,8), (40,30)]
    assert not np.array_equal(x(im.reshape(9, 9, Image.NEAREST)), x(im.reshape(9, 9))) and not np.array_equal(x(im.resize_max(Image.NEAREST, max_w=9)), x(im.resize_max(max_w=9)))
