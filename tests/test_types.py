"Tensors and pictures that keep their class, and functions that choose by type: every source, argument and fault"
from __future__ import annotations
import copy,io,os,pickle
from collections import namedtuple
from pathlib import Path
from multiprocessing.reduction import ForkingPickler
from collections.abc import Sequence,Sized
from typing import Any,Optional

import matplotlib.pyplot as plt,numpy as np,pytest,torch
from PIL import Image
from fastcore.all import L,fastuple,noop
from torch import Tensor
from scratchai.core import *
from scratchai.files import *
from scratchai.types import *
from scratchai.types import _checked,_packed,_pick

x = lambda im: np.asarray(im)
def noise(w=40, h=30, mode='RGB'): return Image.effect_noise((w,h), 60).convert(mode)
def encoded(im, fmt='PNG', **kwargs):
    im.save(b := io.BytesIO(), fmt, **kwargs)
    return b.getvalue()
def turned(im):
    exif = Image.Exif()
    exif[0x112] = 6
    return encoded(im, 'JPEG', exif=exif)

# tensors
def test_a_tensor_keeps_its_class_where_it_is_moved_and_loses_it_where_it_is_computed():
    t = TensorImage(torch.rand(3,4,5))
    kept = t[0], t.to('cpu'), t.to(torch.float64), t.cpu(), t.float(), t.half(), t.clone(), t.detach(), t.contiguous(), t.expand(2,-1,-1,-1), t.repeat(2,1,1,1), copy.copy(t), copy.deepcopy(t), pickle.loads(pickle.dumps(t)), ForkingPickler.loads(ForkingPickler.dumps(t)), *t
    assert {type(o) for o in kept}=={TensorImage} and len(list(t))==3
    assert {type(o) for o in (t*2, t+t, t.flip(1), torch.stack([t,t]), t.mean(), torch.relu(t))}=={Tensor}
    assert torch.equal(copy.deepcopy(t), t) and copy.deepcopy(t).data_ptr()!=t.data_ptr()
    assert torch.equal(pickle.loads(pickle.dumps(t)), t) and 'TensorImage' in repr(t)

def test_gradients_flow_through():
    w = torch.ones(3, requires_grad=True)
    (TensorImage([1.,2,3])*w).sum().backward()
    assert w.grad.tolist()==[1,2,3]
    t = TensorBase([1.]).requires_grad_()
    assert copy.deepcopy(t).requires_grad and not copy.deepcopy(t.detach()).requires_grad

def test_what_a_tensor_is_made_of():
    assert TensorBase([1,2], dtype=torch.float32).dtype is torch.float32 and TensorCategory(3).item()==3
    assert TensorImage(np.zeros((2,3))).shape==(2,3) and type(TensorMask(TensorImage([1])))is TensorMask

def test_points():
    p = TensorPoint.create([1,2,3,4], img_size=(10,20))
    assert p.shape==(2,2) and p.dtype is torch.float32 and not hasattr(TensorPoint.create([[1,2]]), 'img_size')
    assert all(o.img_size==(10,20) for o in (p[0], p.to('cpu'), copy.deepcopy(p), copy.copy(p), pickle.loads(pickle.dumps(p))))

def test_retain_type():
    t = torch.zeros(2)
    assert type(retain_type(t, TensorMask([1]))) is TensorMask and type(retain_type(t, 3)) is Tensor is type(retain_type(t, t))
    assert type(retain_type(t, 3, TensorImage)) is TensorImage and type(retain_type(TensorMask([1]), TensorImage([1]))) is TensorMask
    assert retain_type('a', TensorImage([1]))=='a' and type(retain_type(noise(), PILImage.create(noise()))) is PILImage
    assert type(retain_type(noise(mode='L'), PILImage.create(noise()))) is Image.Image

    class To(Transform):
        def encodes(self, o:PILImage)->TensorImage: return image2tensor(o)
    assert type(To()(PILImage.create(noise()))) is TensorImage and not vars(To()(PILImage.create(noise()))) # no attributes of a picture

# showing
def test_each_part_shows_itself():
    ax = show_item((TensorImage(torch.rand(3,4,5)), TensorMask(torch.ones(4,5)), TensorPoint.create([1,2]), Category('n02102040'), 3))
    assert [len(ax.images), ax.images[1].get_alpha(), len(ax.collections), ax.get_title()]==[2, .5, 1, 'English springer\n3']
    ctx = subplots()[1][0]
    assert TensorImage(torch.rand(3,4,5)).show(ctx=ctx, alpha=.3) is ctx and ctx.images[0].get_alpha()==.3
    assert PILMask.create(np.eye(4)).show(ctx=ctx, vmax=9).images[1].get_clim()[1]==9
    assert TensorPoint.create([1,2]).show(s=50).collections[0].get_sizes()==[50] and PILImage.create(noise()).show(figsize=(3,3)).figure.get_figwidth()==3

def test_titles(capsys):
    ctx = subplots()[1][0]
    assert show_title(L('a','b'), ctx, color='r').title.get_color()=='r' and ctx.get_title()=='a;b'
    assert MultiCategory(['c']).show(ctx).get_title()=='a;b\nc'
    show_title('$x$'), Category('dog').show()
    assert capsys.readouterr().out=='$x$\ndog\n' and Category('dog')=='dog' and isinstance(MultiCategory(['c']), L)

# pictures
def test_every_source_gives_the_same_picture(tmp_path):
    im = noise()
    im.save(fn := tmp_path/'a.png')
    chw = torch.from_numpy(x(im).copy()).permute(2,0,1)
    for src in (fn, str(fn), fn.read_bytes(), bytearray(fn.read_bytes()), io.BytesIO(fn.read_bytes()), open(fn, 'rb'), x(im), torch.from_numpy(x(im).copy()), chw, TensorImage(chw), chw/255, im, PILImage.create(im)):
        got = PILImage.create(src)
        assert type(got) is PILImage and got.size==(40,30) and np.array_equal(x(got), x(im)), src
    assert PILImage.create(got) is got and PILImage.create(got, name='a').name=='a' and got is not PILImage.create(got, name='a')
    assert type(PILImageBW.create(got)) is PILImageBW and x(PILImageBW.create(x(im)[...,:1])).shape==(30,40)

@pytest.mark.parametrize('mode', ['RGB','L','P','RGBA','LA','1','I;16','CMYK'])
def test_as_open_image_makes_it(mode, tmp_path):
    im = noise().convert('L').convert(mode) if mode!='I;16' else Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30,40)*50)
    im.save(fn := tmp_path/('a.tif' if mode=='CMYK' else 'a.png'))
    assert np.array_equal(x(PILImage.create(fn)), x(open_image(fn))) and PILImage.create(fn).mode=='RGB'
    assert np.array_equal(x(PILImageBW.create(fn)), x(open_image(fn).convert('L'))) and PILImageBW.create(fn).mode=='L'

def test_nothing_is_decoded_before_it_is_needed(tmp_path):
    noise(160, 120).save(fn := tmp_path/'a.jpg')
    whole = fn.read_bytes()
    fn.write_bytes(whole[:len(whole)//2])
    n = len(os.listdir('/proc/self/fd')) if os.path.exists('/proc/self/fd') else None
    ims = [PILImage.create(fn) for _ in range(20)]
    assert ims[0].size==(160,120) and ims[0].shape==(120,160) and repr(ims[0])=='PILImage mode=RGB size=160x120'
    if n: assert len(os.listdir('/proc/self/fd'))==n # no file stays open
    with pytest.raises(OSError, match='a.jpg cannot be decoded: .*truncated'): ims[0].load()

def test_upright_before_and_after():
    src = turned(noise(80, 40))
    for im in (PILImage.create(src), PILImage.create(src).reduced(10)):
        size = im.size
        assert size[0]<size[1] and x(im).shape==(*size[::-1],3) and im.size==size
    assert np.array_equal(x(PILImage.create(src)), x(open_image(src)))

def test_reduced_and_draft():
    src = encoded(noise(160, 120), 'JPEG')
    im = PILImage.create(src)
    small = im.reduced(50)
    assert small.size==(80,60) and im.size==(160,120) and im.reduced(61) is im and im.reduced(20).size==(40,30)
    assert np.array_equal(x(im), x(open_image(src))) and im.reduced(20) is im # decoded
    square = encoded(noise(160, 160), 'JPEG')
    assert np.array_equal(x(PILImage.create(square).reduced(64).resize((64,64), 2)), x(open_image(square, 64)))
    assert PILImage.create(encoded(noise(160, 120))).reduced(20).size==(160,120)

def test_a_picture_keeps_its_class_and_can_be_pickled():
    im = PILImage.create(noise())
    assert [type(o) for o in (im.resize((5,5)), im.crop((0,0,5,5)), im.copy(), im.transpose(0), im.to_thumb(9), pickle.loads(pickle.dumps(im)))]==[PILImage]*6
    assert type(im.convert('L')) is Image.Image and pickle.loads(pickle.dumps(im))==im

def test_no_picture():
    with pytest.raises(OSError, match='a picture in bytes is no picture that can be read'): PILImage.create(b'abc')
    with pytest.raises(FileNotFoundError, match='gone.png'): PILImage.create('gone.png')

def test_masks(tmp_path):
    classes = np.array([[0,1],[2,200]], np.uint8)
    p = Image.fromarray(classes).convert('P')
    p.putpalette(list(range(255,-1,-1))*3)
    for im in (Image.fromarray(classes), p, Image.merge('RGB', [Image.fromarray(classes)]*3), Image.fromarray(classes.astype(np.uint16))):
        assert x(PILMask.create(encoded(im))).tolist()==classes.tolist()
    p = Image.fromarray(classes)
    p.putpalette([9]*768) # positions, not colours
    assert p.mode=='P' and x(PILMask.create(p)).tolist()==classes.tolist()
    assert x(PILMask.create(encoded(Image.fromarray(np.eye(2)>0)))).tolist()==[[1,0],[0,1]]
    for bad in (noise(), Image.fromarray(np.full((2,2), 300, np.uint16))):
        if bad.mode=='RGB': bad = Image.fromarray(np.random.randint(0, 255, (4,4,3), np.uint8))
        with pytest.raises(OSError, match='mask has whole numbers from 0 to 255'): PILMask.create(encoded(bad)).load()

def test_image2tensor():
    im = noise()
    t = image2tensor(im)
    assert t.shape==(3,30,40) and t.permute(1,2,0).is_contiguous() and np.array_equal(t.permute(1,2,0), x(im))
    assert image2tensor(noise(mode='L')).shape==(1,30,40) and image2tensor(Image.fromarray(np.eye(3)>0)).dtype is torch.bool
    image2tensor(im).zero_()
    assert x(im).any() # a copy

# classes
def test_category_map():
    m = CategoryMap(['b','a','b',float('nan'),None,''])
    assert m==['a','b'] and m.o2i=={'a':0,'b':1} and m[1]=='b' and m[:1]==['a'] and m[torch.tensor(1)]=='b' and m[torch.tensor([1,0])]==['b','a'] and m[[1]]==['b']
    assert CategoryMap(['b','a'], sort=False)==['b','a'] and CategoryMap(['a'], add_na=True)==['#na#','a']
    assert m.map_objs(['b','a'])==[1,0] and m.map_ids(torch.tensor([1,0]))==['b','a'] and type(m[:1]) is L
    assert CategoryMap([True,False])==[False,True] and CategoryMap(np.array([3,1]))==[1,3]
    with pytest.raises(TypeError, match='several types have no order.*sort=False'): CategoryMap(['a', 1])

def test_category_map_of_a_column():
    pd = pytest.importorskip('pandas')
    col = pd.Series(['a','b'], dtype=pd.CategoricalDtype(['c','b','a']))
    assert CategoryMap(col)==['c','b','a'] and CategoryMap(col, strict=True)==['b','a'] and CategoryMap(pd.Series(['b','a']))==['a','b']

# choosing by type
class Named(Transform):
    def encodes(self, o): return 'any'
    def encodes(self, o:TensorImageBase): return 'picture'
    def encodes(self, o:TensorMask): return 'mask'
    def encodes(self, o:int|list): return 'int or list'
    def encodes(self, o:Optional[str]): return 'text or none'

def test_the_nearest_type_is_called():
    f,mine = Named(),[TensorImageBW([1]),TensorMask([1]),TensorPoint.create([1,2]),True,[],'a',None,1.]
    assert [f(o) for o in mine]==['picture','mask','any','int or list','int or list','text or none','text or none','any']
    class Sub(Named):
        def encodes(self, o:Tensor): return 'of the subclass'
        def encodes(self, o:float): return super().encodes(o)+'!'
    assert [Sub()(o) for o in (TensorMask([1]), 1, 1.)]==['of the subclass','int or list','any!']
    class Anew(Named):
        def encodes(self, o): return 'all'
    assert {Anew()(o) for o in mine}=={'all'}

def test_the_nearest_abstract_class_is_called():
    class F(Transform):
        def encodes(self, o:Sized): return 'sized'
        def encodes(self, o:Sequence): return 'sequence'
        def encodes(self, o:Any): return 'any'
    assert [F()(o) for o in ([], {}, 1, 'a')]==['sequence','sized','any','sequence']

def test_a_class_may_leave_out_what_the_one_above_does():
    class F(Transform):
        def encodes(self, o:int): return o+1
        def decodes(self, o:int): return o-1
    class Once(F): decodes = noop
    assert (Once()((1,'a')), Once().decode((1,'a')))==((2,'a'),(1,'a'))

def test_the_result_keeps_the_class():
    class F(Transform):
        def encodes(self, o:TensorMask)->TensorImage: return o*1.5
        def encodes(self, o:Tensor): return o+1
        def encodes(self, o:PILBase): return Image.fromarray(x(o)//2)
        def encodes(self, o:int): return torch.tensor(o)
    got = F()((TensorMask([1]), TensorPoint.create([1,2]), torch.ones(1), 3, PILImage.create(noise())))
    assert [type(o) for o in got]==[TensorImage,TensorPoint,Tensor,Tensor,PILImage]

def test_tuples_part_by_part():
    Pt = namedtuple('Pt', 'a b')
    class Two(fastuple): pass
    f = Transform(lambda o: o+1)
    assert f((1,(2,3)))==(2,(3,4)) and f(Pt(1,2))==Pt(2,3) and type(f(Pt(1,2))) is Pt and type(f(Two(1,2))) is Two and f(Two(1,2))==(2,3)
    class Swap(ItemTransform):
        def encodes(self, o): return tuple(o[::-1])
        def decodes(self, o): return tuple(o[::-1])
    assert Swap()((1,2))==(2,1) and type(Swap()(Two(1,2))) is Two and Swap().decode(Swap()(Pt(1,2)))==Pt(1,2)
    assert ItemTransform(lambda o: o[0])((1,2))==1 and ItemTransform(lambda o: o)(5)==5

def test_arguments_of_a_transform():
    f = Transform(lambda o: o*2, lambda o: o/2, split_idx=1, order=7)
    assert (f(3), f(3, split_idx=0), f(3, split_idx=1), f.decode(6), f.decode(6, split_idx=1), f.order, f.split_idx)==(3, 3, 6, 6, 3, 7, 1)
    def g(o:int): return -o
    g.order,g.split_idx,g.random = 3,0,False
    t = Transform(g)
    assert (t.order, t.split_idx, t.random, t.name, repr(t), t('a', 0), t(1, 0))==(3, 0, False, 'g', 'g', 'a', -1) and Transform(g, order=5).order==5
    assert (Transform(PILImage.create).name, Transform(PILImage.create).random, Transform(parent_label).random, Transform(len).random, Transform().order)==('PILImage.create', False, False, True, 0)
    assert Transform()((1,'a'))==(1,'a')==Transform().decode((1,'a')) and Transform(str.upper)('a')=='A'

def test_setup():
    class Seen(Transform):
        def setups(self, items): self.items = list(items)
    class Split(list): train = property(lambda self: self[:2])
    f = Seen()
    f.setup([1,2,3])
    assert f.items==[1,2,3]
    f.setup(Split([1,2,3]), True)
    assert f.items==[1,2] and f.setup(Split([1,2,3])) is None and f.items==[1,2,3]

def test_repr_shows_the_arguments():
    assert repr(IntToFloatTensor(5))=="IntToFloatTensor -- {'div': 5, 'div_mask': 1}" and repr(ToTensor())=='ToTensor'

# the first two
def test_to_tensor_and_to_float():
    t = ToTensor()((PILImage.create(noise()), PILImageBW.create(noise()), PILMask.create(np.eye(4)*4), noise(), 'a'))
    assert [type(o) for o in t]==[TensorImage,TensorImageBW,TensorMask,Image.Image,str] and [o.shape for o in t[:3]]==[(3,30,40),(1,30,40),(4,4)]
    f = IntToFloatTensor()(t)
    assert [o.dtype for o in f[:3]]==[torch.float32,torch.float32,torch.int64] and f[0].max()<=1 and type(f[0]) is TensorImage and f[2].max()==4
    assert IntToFloatTensor(div_mask=4)(t)[2].max()==1 and IntToFloatTensor(div=None)(t)[0].max()>1 and IntToFloatTensor(div=51)(t)[0].max()>1
    assert IntToFloatTensor().decode(TensorImage([-1.,2])).tolist()==[0,1] and IntToFloatTensor(None).decode(TensorImage([-1.,2])).tolist()==[-1,2]
    b = TensorImage(torch.zeros(2,4,5,3, dtype=torch.uint8).permute(0,3,1,2))
    assert IntToFloatTensor()(b).is_contiguous(memory_format=torch.channels_last)

def test_an_error_names_the_transform_and_can_be_sent_home():
    e = pickle.loads(pickle.dumps(TransformError('Resize', 'PILImage', 'ValueError: no').at(3, PackedPaths(list('abcd')))))
    assert str(e)=='Resize failed on item 3 (d), a PILImage: ValueError: no' and e.at(1, []) is e
    assert str(TransformError('F', 'str', 'no'))=='F failed on a str: no' and str(TransformError('F', 'str', 'no').at(2, None))=='F failed on item 2, a str: no'

def test_explode_types():
    assert explode_types((TensorMask([1]),['a',3]))=={tuple: [TensorMask, {list: [str,int]}]} and explode_types('a') is str

def test_where_encodes_is_defined():
    def encodes(self, o): return o
    class A(Transform): pass
    for make in (Transform, A):
        with pytest.raises(TypeError, match=f'`encodes` is defined in a class body, and not given to {make.__name__}'): make(encodes)

# items
def test_items_and_splits():
    fns = L(Path('a/b'), Path('c'))
    assert type(_packed(fns)) is PackedPaths and _pick(_packed(fns), 1)==Path('c') and list(_pick(_packed(fns), [1]))==[Path('c')]
    assert _packed((1,2))==[1,2] and _pick(L(1,2), [1])==[2] and _packed([])==[] and type(_packed(['a'])) is L
    assert _checked(None, 3)==[range(3),[]] and _checked(([2],np.array([True,True,False])), 3)==[[2],[0,1]] and _checked(([0,0],[1]), 2)[0]==[0,0]
    for bad,say in ((([],[0]),'none are for training'), (([0,1],[1]),'Item 1 is in split 0 and in split 1'), (([0],[5]),'Split 1 names item 5, but there are 3'), (([-1],[0]),'Split 0 names item -1')):
        with pytest.raises(ValueError, match=say): _checked(bad, 3)

def test_rows_of_a_frame():
    pd = pytest.importorskip('pandas')
    df = pd.DataFrame(dict(a=[1,2,3]), index=[7,8,9])
    assert _packed(df) is df and _pick(df, 1).a==2 and _pick(df, [2,0]).a.tolist()==[3,1]
