"The cache under real faults: whole or not at all, never stale, never without a word"
import copy,os,pickle,random,signal,subprocess,sys,tempfile,time,warnings
from pathlib import Path
from unittest.mock import patch

import numpy as np,pytest,torch
from conftest import gone
from fastcore.all import first
from PIL import Image

from scratchai.cache import *
from scratchai.files import *
from scratchai.loader import *

linux = pytest.mark.skipif(sys.platform!='linux', reason='processes share a half-filled file on Linux only')

@pytest.fixture
def fns(tmp_path):
    "40 pictures of noise"
    (tmp_path/'in').mkdir()
    for i in range(40): Image.effect_noise((48,48), 60).convert('RGB').save(tmp_path/f'in/{i:03}.jpg')
    return get_image_files(tmp_path/'in')

class Logged(Dataset):
    "Writes down which pictures it decodes"
    def decode(self, i):
        with open(Path(self.fns.name(i)).parent/'log', 'a') as f: f.write(f'{i} ')
        return super().decode(i)
class CachedLogged(CachedDataset, Logged): pass
class Toned(CachedDataset): decoding = 'grey'

def fresh(fns, cache='memory', size=32, cls=CachedDataset, **kwargs): return cls(fns, [0]*len(fns), size, cache, **kwargs)
def plain(fns, **kwargs): return torch.stack([Dataset(fns, [0]*len(fns), 32, **kwargs)[i][0] for i in range(len(fns))])
def fill(ds, idxs=None): return torch.stack([ds[i][0] for i in ifnone(idxs, range(len(ds)))])
def ifnone(a, b): return b if a is None else a
def xs(dl): return torch.cat([x for x,_ in dl])
def suffixes(folder): return sorted(o.suffix for o in Path(folder).iterdir())
def decoded(fns): return sorted(map(int, (fns[0].parent/'log').read_text().split()))

def in_program(d, cache, idxs='range(40)', kill=''):
    "Fill a cache in a program of its own, which says `half` and waits for a line after half of the pictures"
    code = f'''
import os,signal,sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_cache as t
{kill}
try: ds = t.fresh(t.get_image_files({str(d)!r}), {str(cache)!r}, cls=t.CachedLogged)
except OSError as e: sys.exit(str(e))
for n,i in enumerate({idxs}):
    if n==len({idxs})//2:
        print('half', flush=True)
        sys.stdin.readline()
    ds[i]
print(ds.in_memory, flush=True)
'''
    return subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

def half(p):
    while not (line := p.stdout.readline()).startswith('half'): assert line, 'ended too early'
    return p

def test_items(fns):
    ds = CachedDataset(fns, [i%2 for i in range(40)], (16,24), method='crop')
    ref = Dataset(fns, [i%2 for i in range(40)], (16,24), method='crop')
    assert not ds.in_memory and ds.__getitems__ is None
    for _ in range(2):
        for i in (0,7,39,-1,-40):
            (x,y),(a,b) = ds[i],ref[i]
            assert torch.equal(x, a) and y==b and torch.equal(ds.decode(i), a)
    for i in (40,-41):
        with pytest.raises(IndexError): ds[i]
    ds[0][0].zero_() # a copy
    assert torch.equal(ds[0][0], ref[0][0])
    fill(ds)
    assert ds.in_memory
    items = ds.__getitems__([3,1,39])
    assert [y for _,y in items]==[ref[i][1] for i in (3,1,39)] and all(torch.equal(x, ref[i][0]) for (x,_),i in zip(items, (3,1,39)))
    items[0][0].zero_()
    assert torch.equal(ds[3][0], ref[3][0])
    assert (ds.vocab,len(ds),ds.size,ds.method,ds.tfm,ds.random)==(ref.vocab,40,(16,24),'crop',None,False)

@pytest.mark.parametrize('context', ['fork',pytest.param('forkserver', marks=pytest.mark.slow),pytest.param('spawn', marks=pytest.mark.slow)])
def test_start_methods(fns, tmp_path, context):
    "Workers of every kind fill one cache, in a folder and in memory, with the pixels that there would be without"
    want = plain(fns)
    for cache in ('memory',tmp_path/'cache'):
        ds = fresh(fns, cache)
        with DataLoader(ds, 8, n_workers=2, context=context) as dl:
            assert torch.equal(xs(dl), want) and ds.in_memory, cache
            assert torch.equal(xs(dl), want)
    assert suffixes(tmp_path/'cache')==['.cache'] and fresh(fns, tmp_path/'cache').in_memory

def test_same_batches(fns):
    "Shuffled, with `drop_last`: the batches are those without a cache, and each picture is decoded once"
    ds = fresh(fns, cls=CachedLogged)
    with DataLoader(ds, 9, shuffle=True, drop_last=True, n_workers=2, seed=3) as dl, DataLoader(Dataset(fns, [0]*40, 32), 9, shuffle=True, drop_last=True, n_workers=0, seed=3) as ref:
        for _ in range(8): assert torch.equal(xs(dl), xs(ref))
    assert ds.in_memory and decoded(fns)==list(range(40))

def test_random_stays_random(fns):
    def turn(x): return torch.rot90(x, random.randrange(4))
    ds = fresh(fns, tfm=turn)
    with DataLoader(ds, 40, n_workers=0, seed=1) as dl: a,b = xs(dl),xs(dl)
    assert not torch.equal(a, b) and ds.cache.complete() and not ds.in_memory and ds.__getitems__ is None and ds.random
    ds = fresh(fns, tfm=lambda x: x.zero_()) # may write into what it is given
    fill(ds), fill(ds)
    assert torch.equal(ds.decode(5), plain(fns)[5])

def test_changed(fns, tmp_path):
    "A changed file, one that is gone, another size, method or decoding: none is served from the old cache"
    cache = tmp_path/'cache'
    def full():
        ds = fresh(fns, cache)
        return ds.in_memory,fill(ds),ds.in_memory
    assert [o for o in full() if isinstance(o, bool)]==[False,True] and full()[0]
    Image.new('RGB', (48,48), 'red').save(fns[3], 'JPEG')
    hit,x,_ = full()
    assert not hit and torch.equal(x, plain(fns)) and x[3,...,0].min()>200
    assert full()[0]
    for o in (fresh(fns, cache, 16), fresh(fns[1:], cache), fresh(fns[::-1], cache), fresh(fns, cache, method='crop'), fresh(fns, cache, cls=Toned)): assert not o.in_memory
    assert fresh(fns, cache, (32,32)).in_memory and fresh(fns, cache, np.int64(32)).in_memory
    key = fresh(fns, cache, cls=Toned).cache.final
    with patch.object(Toned, 'decoding', 'colour'): assert fresh(fns, cache, cls=Toned).cache.final!=key
    assert torch.equal(fresh(fns, cache)[-2][0], plain(fns)[-2])

def test_changed_while_filled(fns, tmp_path):
    "A picture that changes after the cache was begun is not kept, whenever it is decoded; so the file gets no name"
    ds = fresh(fns, tmp_path/'cache')
    fill(ds, range(20))
    for i in (3,30): Image.new('RGB', (48,48), 'red').save(fns[i], 'JPEG')
    os.utime(fns[31], (0,0))
    x = fill(ds)
    assert x[30,...,0].min()>200 and not ds.in_memory and np.flatnonzero(ds.cache.state==0).tolist()==[30,31] and suffixes(tmp_path/'cache')==['.part']
    ds.size = 8 # changed on the way: the cache does not fit any more
    assert ds[0][0].shape==(8,8,3) and not ds.in_memory

def test_bad_file(fns, tmp_path):
    "A bad file is left out in every epoch, from the cache as well, and named each time; it is no hindrance"
    fns[7].write_bytes(fns[7].read_bytes()[:200])
    ds = fresh(fns, tmp_path/'cache')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with DataLoader(ds, 8, n_workers=2, skip_bad=True) as dl:
            for _ in range(3): assert sum(len(y) for _,y in dl)==39 and [e.index for e in dl.bad]==[7]
    assert ds.in_memory and suffixes(tmp_path/'cache')==['.cache']
    for o in (ds, fresh(fns, tmp_path/'cache')):
        with pytest.raises(ItemError, match=r'(?s)Item 7.*007.jpg'): list(DataLoader(o, 8, n_workers=0))

def test_arguments(fns, tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match='pictures of one size'): CachedDataset(fns, [0]*40, None)
    with pytest.raises(TypeError): fresh(fns, True)
    assert len(CachedDataset([], vocab=['a']))==0 and not CachedDataset([], vocab=['a']).in_memory
    monkeypatch.setenv('HOME', str(tmp_path))
    assert Cache('~/home', 'x', (1,2,2,3)).final==tmp_path/'home/x.cache'
    assert capsys.readouterr().out=='cache: 1 pictures, 0.00 MB in ~/home\n'
    for o in (torch.zeros(1,1,3, dtype=torch.uint8), torch.rand(32,32,3)): # the map would take a part of it, or round it
        with pytest.raises(ValueError, match=r'torch.uint8, \(32, 32, 3\)'): Cache('memory', 'x', (4,32,32,3)).get(0, lambda i: o)
    assert Cache('memory', 'x', (4,8,8,3)).n_bytes==4*8*8*3+4

def test_copies(fns):
    ds = fresh(fns)
    fill(ds)
    again = pickle.loads(pickle.dumps(ds))
    assert again.cache is None and torch.equal(again[3][0], ds[3][0]) and not again.in_memory
    assert copy.deepcopy(ds).cache is ds.cache

def test_copies_of_transformed_items(fns):
    "A pickle, of an exported model for instance, has no cache, and decodes; so does an item whose transforms were changed since"
    from scratchai.block import ImageDataLoaders
    ds = ImageDataLoaders.from_path_func(fns[0].parent, fns, parent_label, seed=1, size=32, bs=4, cache='memory', num_workers=0, device='cpu').train.ds
    again = pickle.loads(pickle.dumps(ds))
    assert again.cache is None and torch.equal(again[3][0], ds[3][0]) and again[-1][1]==ds[-1][1] and not again.in_memory
    first(ds.after_item.fs, lambda f: hasattr(f, 'size')).size = (8,8)
    assert ds[3][0].shape==(3,8,8) and not ds.in_memory
    with pytest.raises(IndexError): ds[len(ds)]

class Grey:
    "A data set of another kind: a list of paths, one channel, targets in a list"
    def __init__(self, fns): self.fns,self.y,self.tfm,self.level,self.n = list(fns),[('a',i) for i in range(len(fns))],None,0,0
    def __len__(self): return len(self.fns)
    def __getitem__(self, i): return self.decode(i),self.y[i]
    def decode(self, i):
        self.n += 1
        return torch.from_numpy(np.array(Image.open(self.fns[i]).convert('L')))[...,None]+self.level
class CachedGrey(Cached, Grey):
    def __init__(self, fns, cache):
        super().__init__(fns)
        self.begin_cache(cache, (48,48,1))
    def _how(self): return self.level,

def test_mixin(fns, tmp_path):
    "Before any class that decodes: once each, whole batches, another name for another way to decode or another shape"
    ds,ref = CachedGrey(fns, tmp_path/'cache'),Grey(fns)
    assert not ds.in_memory and ds.__getitems__ is None and not ds.random
    for _ in range(2): assert all(torch.equal(ds[i][0], ref[i][0]) and ds[i][1]==ref.y[i] for i in range(40))
    assert ds.n==40 and ds.in_memory and suffixes(tmp_path/'cache')==['.cache']
    assert [y for _,y in ds.__getitems__([5,2])]==[ref.y[5],ref.y[2]] and torch.equal(ds.__getitems__([5,2])[1][0], ref[2][0])
    assert CachedGrey(fns, tmp_path/'cache').in_memory and CachedGrey([], 'memory').cache is None
    ds.level = 1 # decoded another way since: neither old bytes nor a new name for them
    assert not ds.in_memory and ds.__getitems__ is None and torch.equal(ds[3][0], ref[3][0]+1) and ds.n==41
    ds.tfm = 'any'
    assert ds.random
    with patch.object(CachedGrey, '_how', lambda self: (1,)): assert not CachedGrey(fns, tmp_path/'cache').in_memory
    assert ds._key((48,48,1))!=ds._key((48,48,3))

@linux
def test_goes_on(fns, tmp_path):
    "What a run that was killed left is no cache, and the next run goes on with it"
    cache = tmp_path/'cache'
    for n,sig in enumerate((signal.SIGINT,signal.SIGKILL)):
        p = half(in_program(fns[0].parent, cache, f'range({n*10}, {n*10+20})'))
        p.send_signal(sig)
        p.communicate()
        assert suffixes(cache)==['.part'], sig
    ds = fresh(fns, cache, cls=CachedLogged)
    assert ds.cache.state.tolist()==[1]*20+[0]*20 and not ds.in_memory
    assert torch.equal(fill(ds), plain(fns)) and ds.in_memory and suffixes(cache)==['.cache'] and decoded(fns)==list(range(40))
    assert torch.equal(fill(fresh(fns, cache, cls=CachedLogged)), plain(fns)) and decoded(fns)==list(range(40))

@linux
def test_killed_with_workers(fns, tmp_path):
    "A killed program leaves no worker behind, which would go on filling"
    code = f'''
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_cache as t
from conftest import children
with t.DataLoader(t.fresh(t.get_image_files({str(fns[0].parent)!r}), {str(tmp_path/"cache")!r}), 4, n_workers=2) as dl:
    for b in dl:
        print('half', *children(), flush=True)
        sys.stdin.readline()
'''
    p = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not (line := p.stdout.readline()).startswith('half'): assert line
    pids = [int(o) for o in line.split()[1:]]
    assert len(pids)>=2
    p.kill()
    p.communicate()
    assert gone(pids) and suffixes(tmp_path/'cache')==['.part']

@linux
def test_two_at_once(fns, tmp_path):
    "Two programs with a half each fill one file; both end well, it is right, and each picture is decoded once"
    cache = tmp_path/'cache'
    ps = [half(in_program(fns[0].parent, cache, f'range({i}, 40, 2)')) for i in range(2)]
    assert suffixes(cache)==['.part']
    outs = [p.communicate('go\n', timeout=60)[0].split()[-1] for p in ps]
    assert outs[1]=='True' and suffixes(cache)==['.cache'] and decoded(fns)==list(range(40))
    ds = fresh(fns, cache, cls=CachedLogged)
    assert ds.in_memory and torch.equal(fill(ds), plain(fns))

@linux
def test_named_once(fns, tmp_path):
    "If several find the file complete, the first names it; if it was removed, that is said, and the run goes on"
    a,b = [fresh(fns, tmp_path/'cache') for _ in range(2)]
    fill(a)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert (b.in_memory,a.in_memory,suffixes(tmp_path/'cache'))==(True,True,['.cache'])
    c = fresh(fns, tmp_path/'other')
    c.cache.part.unlink()
    fill(c)
    with pytest.warns(UserWarning, match='lasts for this run only: .*No such file'): assert c.in_memory
    assert torch.equal(fill(c), plain(fns))

def test_not_named_by_a_worker(fns, tmp_path):
    ds = fresh(fns, tmp_path/'cache')
    fill(ds)
    with patch('os.getpid', return_value=1): assert not ds.in_memory and suffixes(tmp_path/'cache')==['.part']
    assert ds.in_memory

def test_sweep(fns, tmp_path):
    "What nobody has changed for a day goes, and nobody else's file"
    (cache := tmp_path/'cache').mkdir()
    mine,old,new = [cache/o for o in ('film.mp4.part', f"{'0a'*12}.{'1'*8}-0.part", f"{'0b'*12}.{'1'*8}-0.part")]
    for o in (mine,old,new): o.touch()
    for o in (mine,old): os.utime(o, (0,0))
    fresh(fns, cache)
    assert mine.exists() and new.exists() and not old.exists()

def test_after_a_restart(fns, tmp_path):
    "A half-filled file from before the machine was started again is not trusted"
    fill(fresh(fns, tmp_path/'cache'), range(5))
    with patch('pathlib.Path.read_text', return_value='another-boot'): assert not fresh(fns, tmp_path/'cache').cache.state.any()

def test_small_disk(fns, tmp_path):
    "A disk without room is a sentence, before anything is written to it"
    (disk := tmp_path/'disk').mkdir()
    if subprocess.run(['mount','-t','tmpfs','-o','size=16k','none',disk], capture_output=True).returncode: pytest.skip('no right to mount')
    try:
        with pytest.raises(OSError, match=f'The cache needs 0.12 MB in {disk}, where 0.02 MB are free .No space left on device.: name another folder'): fresh(fns, disk)
        assert not list(disk.iterdir())
    finally: subprocess.run(['umount', disk])

def test_no_room(fns, tmp_path):
    with patch('os.posix_fallocate', side_effect=OSError(122, 'Disk quota exceeded'), create=True):
        with pytest.raises(OSError, match='Disk quota exceeded'): fresh(fns, tmp_path/'cache')
        with pytest.raises(OSError, match='Disk quota exceeded'): fresh(fns)
    assert list((tmp_path/'cache').iterdir())==[]
    out = in_program(fns[0].parent, tmp_path/'cache', kill='import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**4, 10**4))').communicate(timeout=60)[0]
    assert 'The cache needs 0.12 MB' in out and 'File too large' in out and 'Traceback' not in out and list((tmp_path/'cache').iterdir())==[]

@linux
def test_memory_leaves_nothing(fns):
    "A cache in memory leaves no file anywhere, whatever ends the process, and no descriptor"
    def shm(): return {str(o) for d in ('/dev/shm',tempfile.gettempdir()) if os.path.isdir(d) for o in Path(d).iterdir() if o.is_file() and o.stat().st_size==40*32*32*3+40}
    before = shm()
    p = half(in_program(fns[0].parent, 'memory'))
    assert shm()==before
    p.kill()
    p.communicate()
    assert shm()==before
    fds = len(os.listdir('/proc/self/fd'))
    for _ in range(20): ds = fresh(fns)
    del ds
    assert len(os.listdir('/proc/self/fd'))<=fds
