"Listing, opening, labelling and splitting pictures: odd files, odd folders, odd names"
import io,os,pickle,re,sys,zlib
from pathlib import Path

import numpy as np,pytest,torch
from PIL import Image
from fastcore.all import L,noop
from scratchai.core import set_seed,tensor
from scratchai.files import *

def saved(im, fmt, **kwargs):
    "`im` as `open_image` sees it in a file of format `fmt`: the red of its first row"
    im.save(f := io.BytesIO(), fmt, **kwargs)
    return np.array(open_image(f.getvalue()))[0,:,0].tolist()

def grey(*xs, dtype): return Image.fromarray(np.array([xs], dtype=dtype))
def touch(d, *names):
    for o in names:
        (d/o).parent.mkdir(parents=True, exist_ok=True)
        (d/o).touch()
def names(fns, d): return [o.relative_to(d).as_posix() for o in fns]

# listing
def test_only_pictures_sorted_and_nothing_hidden(tmp_path):
    touch(tmp_path, 'a/1.JPG', 'a/2.txt', 'b/3.png', '.c/4.png', '5.gif', 'b/.6.png', 'a.b/7.webp', 'd/8.jpg/9.png')
    assert names(get_image_files(tmp_path), tmp_path) == ['5.gif', 'a.b/7.webp', 'a/1.JPG', 'b/3.png', 'd/8.jpg/9.png']
    assert names(get_image_files(tmp_path, folders='b'), tmp_path) == ['b/3.png']
    assert names(get_image_files(tmp_path, folders=['b','.c','none']), tmp_path) == ['.c/4.png', 'b/3.png']
    assert names(get_image_files(tmp_path, recurse=False), tmp_path) == ['5.gif']
    assert isinstance(get_image_files(str(tmp_path)), L)

def test_files_of_any_ending(tmp_path):
    touch(tmp_path, 'a/1.JPG', 'a/2.txt', 'a/b/3.csv', 'c/4.txt', '.5.txt', '6.CSV', '7')
    assert names(get_files(tmp_path), tmp_path)==['6.CSV', '7', 'a/1.JPG', 'a/2.txt', 'a/b/3.csv', 'c/4.txt']
    assert names(get_files(tmp_path, '.csv'), tmp_path)==['6.CSV', 'a/b/3.csv']
    assert names(get_files(tmp_path, {'.TXT','.csv'}, folders='a'), tmp_path)==['a/2.txt', 'a/b/3.csv']
    assert names(get_files(tmp_path, ['.txt','.csv'], recurse=False), tmp_path)==['6.CSV']
    assert '.jpeg' in image_extensions and '.txt' not in image_extensions
    with pytest.raises(FileNotFoundError, match='no folder .*none to look for files in'): get_files(tmp_path/'none')

def test_getters_wait_for_the_folder(tmp_path):
    touch(tmp_path, 'x/1.jpg', 'x/a/2.jpg', 'x/b/3.jpg', 'x/b/4.txt', '5.jpg')
    assert names(ImageGetter()(str(tmp_path)), tmp_path)==['5.jpg', 'x/1.jpg', 'x/a/2.jpg', 'x/b/3.jpg']
    assert names(ImageGetter('x', folders=['b'])(tmp_path), tmp_path)==['x/b/3.jpg']
    assert names(ImageGetter('x', recurse=False)(tmp_path), tmp_path)==['x/1.jpg']
    assert names(FileGetter('x', '.txt')(tmp_path), tmp_path)==['x/b/4.txt']
    assert names(FileGetter('x', recurse=False, folders='b')(tmp_path), tmp_path)==['x/b/3.jpg', 'x/b/4.txt']

def test_paths_are_shown_below_base_path(tmp_path, monkeypatch):
    touch(tmp_path, 'a/1.jpg')
    monkeypatch.setattr(Path, 'BASE_PATH', tmp_path, raising=False)
    assert repr(get_image_files(tmp_path))=="[Path('a/1.jpg')]"

def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, 'all/1.jpg')
    (tmp_path/'all/loop').symlink_to(tmp_path)
    for o in ('fold1','fold2'):
        (tmp_path/o).mkdir()
        (tmp_path/o/'cat').symlink_to(tmp_path/'all')
    got = names(get_image_files(tmp_path), tmp_path)
    assert [o for o in got if 'loop' not in o] == ['all/1.jpg', 'fold1/cat/1.jpg', 'fold2/cat/1.jpg']
    (tmp_path/'all/loop').unlink()
    for a,b in ((1,2),(2,1)): (tmp_path/f'fold{a}/to').symlink_to(tmp_path/f'fold{b}')
    assert names(get_image_files(tmp_path, folders='fold1'), tmp_path) == ['fold1/cat/1.jpg', 'fold1/to/cat/1.jpg']
    (tmp_path/'gone.jpg').symlink_to(tmp_path/'nowhere')
    assert len(get_image_files(tmp_path, recurse=False)) == 1

def test_a_folder_that_is_not_there_or_cannot_be_listed(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match='no folder /no/such'): get_image_files('/no/such')
    def refuse(d): raise PermissionError(13, 'Permission denied', str(d))
    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(PermissionError, match=str(tmp_path)): get_image_files(tmp_path)

# opening
@pytest.mark.parametrize('mode', '1 L LA P PA RGB RGBA RGBa RGBX CMYK YCbCr HSV LAB I F I;16'.split())
def test_every_mode_becomes_rgb(mode):
    for im in (open_image(Image.new(mode, (5,4))), open_image(Image.new(mode, (5,4)), (8,6))): assert im.mode=='RGB'
    assert im.size==(6,8)

@pytest.mark.parametrize('top', (4095,65535))
def test_grey_of_16_bits(top):
    assert np.array(open_image(b'P5 3 1 %d\n'%top+np.array([0,top//2,top], dtype='>u2').tobytes()))[0,:,0].tolist() == [0,127,255]
    assert saved(grey(0,top, dtype=np.int32), 'TIFF')[1] == (255 if top==65535 else 16)
    assert saved(Image.fromarray((np.arange(256)*257).astype(np.uint16)[None]), 'PNG') == list(range(256))

@pytest.mark.parametrize('top', (1,255,65535,1e6))
def test_real_numbers(top):
    assert saved(grey(0,top/2,top,np.nan, dtype=np.float32), 'TIFF')[:3] == [0,128,255]
    assert saved(grey(0,0,np.inf,-1, dtype=np.float32), 'TIFF') == [0,0,0,0]

def test_whole_numbers_of_32_bits(): assert saved(grey(0,2**30,2**31-1, dtype=np.int32), 'TIFF') == [0,128,255]

def test_transparent_is_white():
    pal = Image.new('P', (8,8))
    pal.putpalette([255,0,0]*256)
    assert saved(pal, 'PNG', transparency=0) == [255]*8
    assert saved(Image.new('LA', (1,1), (0,0)), 'PNG') == [255]
    assert saved(Image.new('RGB', (1,1)), 'PNG', transparency=(0,0,0)) == [255]
    Image.fromarray((np.arange(256)*257).astype(np.uint16)[None]).save(f := io.BytesIO(), 'PNG')
    clear = b'tRNS\0\0' # grey level 0 of 16 bits is transparent
    clear = (2).to_bytes(4, 'big')+clear+zlib.crc32(clear).to_bytes(4, 'big')
    assert np.array(open_image(f.getvalue()[:33]+clear+f.getvalue()[33:]))[0,:3,0].tolist() == [255,1,2]

def test_four_inks():
    Image.new('CMYK', (32,32), (0,255,255,0)).save(f := io.BytesIO(), 'JPEG', quality=95)
    r,g,b = open_image(f.getvalue(), 16).getpixel((8,8))
    assert r>200 and g<60 and b<60

@pytest.mark.parametrize('turn', range(1,9))
def test_every_turn_of_exif(turn):
    from PIL import ImageOps
    left = Image.new('L', (32,32))
    left.paste(255, (0,0,16,32)), left.paste(128, (0,0,16,8))
    exif = Image.Exif()
    exif[0x0112] = turn
    left.save(f := io.BytesIO(), 'PNG', exif=exif)
    assert np.array_equal(open_image(f.getvalue()), ImageOps.exif_transpose(Image.open(f)).convert('RGB'))

def test_a_note_that_cannot_be_read_says_nothing():
    Image.new('RGB', (9,5), 'red').save(f := io.BytesIO(), 'PNG', exif=b'Exif\0\0junk')
    assert open_image(f.getvalue(), np.int64(4)).getpixel((0,0)) == (255,0,0)

def test_sources(tmp_path):
    im = Image.effect_noise((40,30), 60).convert('RGB')
    im.save(tmp_path/'a.png')
    want,t = np.array(im),tensor(im)
    with open(tmp_path/'a.png', 'rb') as f: opened = open_image(f)
    srcs = (tmp_path/'a.png',str(tmp_path/'a.png'),(tmp_path/'a.png').read_bytes(),bytearray((tmp_path/'a.png').read_bytes()),want,t,im)
    for o in (opened, *map(open_image, srcs)): assert np.array_equal(o, want)
    assert open_image(im) is not im

def test_sizes_and_methods():
    wide = Image.radial_gradient('L').resize((240,120)).convert('RGB')
    assert open_image(wide, (10,20)).size==(20,10)
    assert open_image(wide, (50,50), method='pad').getpixel((25,2))==(0,0,0)
    squished,cropped = (np.array(open_image(wide, 32, method=o)).astype(int) for o in ('squish','crop'))
    assert abs(squished[0]-squished[:,0]).mean() < abs(cropped[0]-cropped[:,0]).mean() # a circle, and the middle of an ellipse
    assert not np.array_equal(open_image(wide, 32, resample=Image.NEAREST), open_image(wide, 32))
    with pytest.raises(ValueError, match="'squish', 'crop' or 'pad', not 'stretch'"): open_image(wide, 9, method='stretch')
    for o in (0,64.,'64',(64,),(64,0)):
        with pytest.raises(ValueError, match='`size` is a whole number of pixels'): open_image(wide, o)

def test_a_damaged_file_is_an_error(tmp_path):
    Image.effect_noise((400,400), 60).save(f := io.BytesIO(), 'JPEG')
    for o in (f.getvalue()[:3000],b'junk'):
        with pytest.raises(OSError): open_image(o, 64)

# labels
def test_labels_of_deeper_folders(tmp_path):
    label = FolderLabeller(tmp_path/'train')
    assert [label(tmp_path/'train'/o) for o in ('dog/1.jpg','dog/2024/1.jpg','cat/a/b/c.png')] == ['dog','dog','cat']
    assert [parent_label(o) for o in ('dog/1.jpg',Path('dog/2024/1.jpg'))] == ['dog','2024']
    with pytest.raises(ValueError, match='1.jpg lies in no class folder'): label(tmp_path/'train/1.jpg')
    with pytest.raises(ValueError): label('elsewhere/dog/1.jpg')
    assert FolderLabeller('.')('dog/a/1.jpg') == 'dog'

def test_regex_labels():
    assert RegexLabeller(r'/([^/]+)_\d+.jpg$')(Path('pets/great_pyrenees_173.jpg')) == 'great_pyrenees'
    with pytest.raises(ValueError, match='finds no label in a/notes.txt'): RegexLabeller(r'(\d+)')('a/notes.txt')
    assert RegexLabeller(r'(\w+)_\d+', match=True)('cat_12.jpg')=='cat'
    with pytest.raises(ValueError, match='finds no label in x/cat_12.jpg'): RegexLabeller(r'(cat)', match=True)('x/cat_12.jpg')
    assert pickle.loads(pickle.dumps(RegexLabeller(r'(\d+)', match=True)))('3.jpg')=='3'

# splits
def test_the_nearest_split_folder_above_the_class():
    items = ['train/dog/1.jpg', 'valid/dog/2024/1.jpg', 'valid/train/1.jpg', 'test/dog/1.jpg', 'train/exp/valid/dog/1.jpg', 'train/1.jpg', '1.jpg']
    assert GrandparentSplitter()(items) == ([0],[1,2,4])
    assert GrandparentSplitter(['train','test'], 'valid')(map(Path, items)) == ([0,3],[1,2,4])

def test_random_splits():
    items = list(range(500))
    a = RandomSplitter()(items)
    set_seed(42)
    assert a == RandomSplitter()(items) and a != RandomSplitter()(items)
    assert RandomSplitter(.25, seed=3)(items) == RandomSplitter(.25, seed=3)(items) != RandomSplitter(.25, seed=4)(items)
    assert sorted(a[0]+a[1])==items and [len(o) for o in a]==[400,100]
    with pytest.raises(ValueError, match='a share from 0 to 1'): RandomSplitter(20)

# names
def test_packed_paths():
    fns = [Path(f'a/{i}.jpg') for i in range(10)]
    packed = PackedPaths(fns)
    assert list(packed)==fns and packed[-1]==fns[-1] and packed[2:4]==L(fns[2:4]) and len(packed)==10 and packed.name(np.int64(3))=='a/3.jpg'
    assert repr(packed).startswith('10 paths') and not len(PackedPaths([])) and list(PackedPaths(packed))==fns
    for i in (10,-11):
        with pytest.raises(IndexError): packed[i]

@pytest.mark.skipif(sys.platform!='linux', reason='reads /proc')
def test_packed_paths_are_not_copied_by_workers():
    def private(): return int(re.search(r'Private_Dirty: +(\d+)', Path('/proc/self/smaps_rollup').read_text())[1])//1024
    def copied(paths):
        r,w = os.pipe()
        if not os.fork():
            before = private()
            for o in paths: str(o)
            os._exit(os.write(w, str(private()-before).encode())*0)
        os.wait()
        return int(os.read(r, 20))
    many = [Path(f'train/n01440764/{i}.JPEG') for i in range(200_000)]
    listed,many = copied(many),PackedPaths(many)
    assert copied(many) < listed/2

@pytest.mark.skipif(sys.platform!='linux', reason='names of files are text there')
def test_names_that_are_not_utf8(tmp_path):
    for i,o in enumerate((b'caf\xe9', b'tea')):
        d = os.fsencode(tmp_path)+b'/'+o
        os.mkdir(d)
        Image.new('RGB', (8,8), (i*200,0,0)).save(os.fsdecode(d+b'/\xff.png'))
    fns = get_image_files(tmp_path)
    ds = Dataset(fns, FolderLabeller(tmp_path), size=4)
    assert [os.fsencode(o) for o in ds.vocab] == [b'caf\xe9',b'tea'] and ds[1][0][0,0,0]==200
    assert printable(ds.vocab[0])=='caf�' and printable(3)=='3' and repr(ds.fns).encode() and repr(ds.vocab).encode()
    assert pickle.loads(pickle.dumps(ds)).vocab==ds.vocab

# the data set
@pytest.fixture
def fns(tmp_path):
    for c in 'ab':
        (tmp_path/c).mkdir()
        for i in range(3): Image.effect_noise((40,30), 60).save(tmp_path/c/f'{i}.png')
    return get_image_files(tmp_path)

def test_items(fns):
    ds = Dataset(fns)
    x,y = ds[4]
    assert (x.shape,x.dtype,y,type(y)) == ((64,64,3),torch.uint8,1,int) and ds.vocab==['a','b'] and ds.y.tolist()==[0,0,0,1,1,1]
    assert Dataset(fns, size=None)[0][0].shape==(30,40,3) and Dataset(fns, size=np.int64(8))[0][0].shape==(8,8,3)
    assert Dataset(fns, size=(8,16), method='crop')[0][0].shape==(8,16,3)
    assert not torch.equal(Dataset(fns, method='pad')[0][0], x) and torch.equal(ds[-2][0], x) and torch.equal(ds.decode(-2), x)
    assert Dataset(fns, tfm=lambda o: o*0)[0][0].sum()==0 and (ds.random,Dataset(fns, tfm=noop).random)==(False,True)
    assert torch.equal(pickle.loads(pickle.dumps(ds))[4][0], x)
    for i in (6,-7):
        with pytest.raises(IndexError): ds[i]

@pytest.mark.parametrize('labels', (['a','b','a'], np.array(['a','b','a']), tensor(3,1,3), (False,True,False)))
def test_labels_of_any_kind(fns, labels): assert len(Dataset(fns[:3], labels).vocab)==2

def test_labels_that_cannot_be(fns):
    assert Dataset(fns[:3], tensor(3,1,3), vocab=np.array([1,2,3])).y.tolist()==[2,0,2]
    with pytest.raises(TypeError, match='Labels of several types have no order'): Dataset(fns[:3], ['a',1,None])
    with pytest.raises(ValueError, match='3 pictures but 1 labels'): Dataset(fns[:3], ['a'])
    with pytest.raises(ValueError, match="The class 'b' of .*0.png is not among the classes to learn"): Dataset(fns, vocab=['a'])
    with pytest.raises(ValueError, match='whole number of pixels'): Dataset(fns, size=64.)

class Grey(Dataset):
    def decode(self, i): return super().decode(i)[...,:1]
def test_a_subclass_decodes_otherwise(fns): assert Grey(fns)[0][0].shape==(64,64,1)


def test_a_subclass_counts_as_random():
    "The loader seeds the generators for its items, so that workers do not all draw the same"
    class Noisy(Dataset):
        def decode(self, i): return torch.randint(256, (4,4,3), dtype=torch.uint8)
    fns = ['a/1.jpg', 'b/2.jpg']
    assert [Dataset(fns).random, Dataset(fns, tfm=torch.flip).random, Noisy(fns).random] == [False, True, True]
