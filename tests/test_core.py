"Chapter 00: what it promises of odd nests, titles, files and seeds"
import os,pickle,random,re,subprocess,sys
from collections import Counter,OrderedDict,UserDict,UserList,defaultdict,deque,namedtuple
from dataclasses import dataclass,field
from pathlib import Path

import matplotlib.pyplot as plt,numpy as np,pytest,torch
from fastcore.all import L
from PIL import Image
from torch.nn.utils.rnn import pack_sequence

from scratchai.core import *

Pair = namedtuple('Pair', 'a b')

@dataclass
class Sample:
    x: object
    n: int = 3
    late: object = field(default=None, init=False)
    unset: object = field(init=False)

@dataclass(frozen=True, slots=True)
class Frozen: x: object

class Needy(dict):
    "A dict that cannot be made without a word"
    def __init__(self, word): self.word = word

def needy(t):
    res = Needy('hello')
    res['x'] = t
    return res

t = torch.ones(2, 3, requires_grad=True)
nests = {
    'tensor': (t, lambda o: o), 'list': ([t], lambda o: o[0]), 'tuple': ((t,), lambda o: o[0]), 'L': (L(t), lambda o: o[0]),
    'named tuple': (Pair(t, 1), lambda o: o.a), 'dict': ({'x':t}, lambda o: o['x']), 'OrderedDict': (OrderedDict(x=t), lambda o: o['x']),
    'defaultdict': (defaultdict(list, x=t), lambda o: o['x']), 'UserDict': (UserDict(x=t), lambda o: o['x']),
    'a dict of its own': (needy(t), lambda o: o['x']), 'UserList': (UserList([t]), lambda o: o[0]), 'deque': (deque([t]), lambda o: o[0]),
    'set': ({t}, lambda o: [*o][0]), 'dataclass': (Sample(t), lambda o: o.x), 'frozen dataclass': (Frozen(t), lambda o: o.x),
    'deep': ([{'x': Pair(Sample([t]), 0)}], lambda o: o[0]['x'].a.x[0])}

@pytest.mark.parametrize('kind', nests)
def test_containers_move(kind):
    nest,get = nests[kind]
    moved,back = to_device(nest, 'meta'),to_cpu(nest)
    assert type(moved) is type(nest) and get(moved).device.type=='meta'
    assert type(back) is type(nest) and not get(back).requires_grad
    assert get(nest) is t # the original is as it was
    assert find_bs(nest)==2

def test_containers_keep_their_ways():
    assert to_device(defaultdict(list, x=t), 'meta')['new']==[]
    assert needy(t).word==to_device(needy(t), 'meta').word
    s = Sample(t)
    s.late = [t]
    assert to_device(s, 'meta').late[0].device.type=='meta'
    assert to_device(('a', 3, None, Sample), 'meta')==('a', 3, None, Sample)
    assert apply(lambda o,n,k: o*n+k, Counter(a=2), 10, k=1)==Counter(a=21)
    arr = np.ones(2)
    assert to_device([arr], 'meta')[0] is arr

def test_packed_sequence():
    p = pack_sequence([torch.ones(3, 2, requires_grad=True).half(), torch.ones(5, 2).half()], enforce_sorted=False)
    m,c = to_device([p], 'meta')[0],to_cpu([p])[0]
    assert type(m) is type(c) is type(p)
    assert m.data.device.type==m.sorted_indices.device.type=='meta' and m.batch_sizes.device.type=='cpu'
    assert c.data.dtype==torch.float32 and not c.data.requires_grad
    assert find_bs((p, t))==2

def test_find_bs():
    assert [find_bs(o) for o in (torch.ones(4), torch.tensor(1.), np.ones((5,2)), ['a','b'], (['a','b','c'], 1), {'n':['a']}, ())]==[4, 1, 5, 2, 3, 1, 0]
    assert find_bs(('name', {'x': torch.ones(7)}))==7 # a text before the first tensor

def test_device():
    assert default_device(0)==default_device(False)==torch.device('cpu')
    assert default_device().type in ('cpu','cuda','mps')
    if default_device().type=='cpu':
        with pytest.raises(RuntimeError, match='No accelerator'): default_device(True)

def draw(): return random.random(),np.random.rand(),torch.rand(1).item()

def test_no_random():
    set_seed(3)
    a,b = draw(),draw()
    set_seed(3)
    with pytest.raises(KeyError):
        with no_random(): raise KeyError
    with no_random(): x = draw()
    with no_random(42): assert draw()==x
    with no_random(-1): assert draw()!=x
    with no_random(None): assert draw()==a
    assert draw()==a
    with no_random():
        with no_random(5): draw()
        assert draw()==x
    assert draw()==b

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_no_random_on_a_gpu():
    torch.manual_seed(3)
    a = torch.rand(2, device='cuda')
    torch.manual_seed(3)
    with no_random(): x = torch.rand(2, device='cuda')
    with no_random(): assert torch.rand(2, device='cuda').equal(x)
    assert torch.rand(2, device='cuda').equal(a)
    assert to_device([{'x': torch.ones(1)}])[0]['x'].is_cuda
    p = to_device(pack_sequence([torch.ones(3), torch.ones(5)], enforce_sorted=False))
    assert p.data.is_cuda and p.sorted_indices.is_cuda and not p.batch_sizes.is_cuda

def test_seed_takes_any_int():
    for s in (-1, 2**40): set_seed(s)
    set_seed(1, reproducible=True)
    assert torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = False

def test_tensor():
    assert tensor(1, 2, 3).tolist()==[1,2,3] and tensor(range(3)).tolist()==[0,1,2]
    assert tensor([1., 2.]).dtype==torch.float32 and tensor(2, dtype=torch.half).dtype==torch.half
    assert tensor([torch.ones(2), torch.zeros(2)]).shape==(2,2)
    assert tensor(2., requires_grad=True).requires_grad and tensor(np.ones(2), requires_grad=True).requires_grad
    a = np.arange(3)
    b = tensor(a)
    a[0] = 9
    assert b.tolist()==[0,1,2]
    assert tensor(t) is t
    assert tensor(Image.new('RGB', (4,3))).shape==(3,4,3)

@pytest.mark.parametrize('title', ['$50_$100', '$', 'a_$x^{$', r'\frac{', 'two\nlines'])
def test_any_text_is_a_title(title, tmp_path):
    axs = show_images([torch.rand(3,8,8)]*2, titles=[title]*2)
    axs[0].figure.savefig(tmp_path/'a.png')
    assert [o.get_title() for o in axs]==[title]*2
    show_titled_image((torch.rand(8,8), title)).figure.savefig(tmp_path/'b.png')

def test_pictures():
    shape = lambda im: show_image(im).images[0].get_array().shape
    assert [shape(torch.rand(*s)) for s in ((3,8,9), (8,9,3), (1,8,9), (8,9,1), (8,9), (4,8,9))]==[(8,9,3), (8,9,3), (8,9), (8,9), (8,9), (8,9,4)]
    assert shape(torch.rand(3,8,9).bfloat16())==shape(Image.new('RGB', (9,8)))==(8,9,3)
    ax = plt.subplots()[1]
    assert show_image(torch.rand(8,8), ctx=ax, cmap='viridis') is ax and ax.images[0].cmap.name=='viridis'
    assert show_image(torch.rand(8,8), figsize=(1,2)).figure.get_size_inches().tolist()==[1,2]
    assert show_titled_image((torch.rand(8,8), 7)).get_title()=='7'
    ims = [torch.rand(8,8)]*5
    assert [len(show_images(ims, **kw)) for kw in ({}, dict(nrows=2), dict(ncols=2), dict(nrows=5, ncols=1))]==[5,6,6,5]
    assert show_images(ims, imsize=1)[0].figure.get_size_inches().tolist()==[5,1]
    with pytest.raises(ValueError, match='no pictures'): show_images([])

def test_self():
    from scratchai.all import Self
    fs = L('data/cat/1.jpg', 'data/dog/2.jpg').map(Path)
    assert fs.map(Self.parent.name())==fs.map(Self.parent.name.upper().lower())==['cat','dog']
    assert fs.map(Self.name.split('.')[0].upper())==['1','2']
    assert L([3,1],[2,4]).map(Self[0])==[3,2] and L([3,1],[2,4]).sorted(Self[1])[0]==[3,1]
    assert (~Self.name)(fs[0])=='1.jpg' and Self.split('/', maxsplit=1)(('a/b/c'))==['a','b/c']
    assert L(len, sum).map(Self([1,2]))==[2,3]
    assert pickle.loads(pickle.dumps(Self.parent.name()))(fs[0])=='cat'

def test_cache_dir(monkeypatch):
    monkeypatch.setenv('SCRATCHAI_HOME', '/tmp/elsewhere')
    assert cache_dir('a', 'b')==Path('/tmp/elsewhere/a/b')
    monkeypatch.setenv('SCRATCHAI_HOME', '')
    monkeypatch.setenv('XDG_CACHE_HOME', '/tmp/c')
    monkeypatch.setattr('sys.platform', 'linux')
    assert cache_dir()==Path('/tmp/c/scratchai')

def test_write_whole(tmp_path):
    f = tmp_path/'new/deeper/w.txt'
    seen = []
    assert write_whole(str(f), lambda p: (seen.append(p), p.write_text('first')))==f
    assert f.read_text()=='first' and seen[0].name=='w.txt' and seen[0].parent.parent==f.parent
    def breaks(p):
        p.write_text('half')
        raise OSError('disk full')
    with pytest.raises(OSError, match='disk full'): write_whole(f, breaks)
    assert f.read_text()=='first' and os.listdir(f.parent)==['w.txt']
    write_whole(f, lambda p: p.write_text('second'))
    assert f.read_text()=='second' and os.listdir(f.parent)==['w.txt']

@pytest.mark.skipif(sys.platform=='win32', reason='signals are for POSIX')
def test_a_kill_leaves_one_hidden_folder(tmp_path):
    "... with all that the writer had made, and nothing that a list of pictures would find"
    from scratchai.files import get_image_files
    code = f'''
import os
from pathlib import Path
from scratchai.core import write_whole
def write(f):
    f.write_text('half'), f.with_name('.tmp123').write_text('of the writer'), os.kill(os.getpid(), 9)
write_whole(Path({str(tmp_path)!r})/'a.jpg', write)'''
    assert subprocess.run([sys.executable, '-c', code]).returncode==-9
    left, = tmp_path.iterdir()
    assert re.fullmatch(r'\.a\.jpg-\w{8}\.part', left.name) and len(list(left.iterdir()))==2 and get_image_files(tmp_path)==[]

def test_arrays_of_a_nest():
    res = to_np(dict(x=[torch.ones(2, requires_grad=True), torch.ones(2).bfloat16()], y=torch.tensor([1]), name='a'))
    assert isinstance(res['x'][0], np.ndarray) and res['x'][1].dtype==np.float32 and res['y'].tolist()==[1] and res['name']=='a'

def test_find_device():
    assert find_device(['a', dict(x=torch.ones(2, device='meta')), torch.ones(2)]).type=='meta'
    assert find_device(torch.ones(2)).type=='cpu'
    with pytest.raises(ValueError, match='no tensor in this list'): find_device(['a', 1])

def test_flatten_check():
    a,b = flatten_check(torch.arange(6).view(2,3).T, torch.arange(6)[:,None])
    assert a.tolist()==[0,3,1,4,2,5] and b.tolist()==[*range(6)]
    with pytest.raises(ValueError, match=r'\(2, 3\) and \(2,\) hold 6 and 2 numbers'): flatten_check(torch.zeros(2,3), torch.zeros(2))

@pytest.mark.parametrize('kw,size', [({}, (9,6)), (dict(imsize=1), (3,2)), (dict(imsize=1, suptitle='$5_$6'), (3,2.6)), (dict(suptitle='a'), (9,6)), (dict(figsize=(4,5), imsize=1), (4,5))], ids=str)
def test_subplots(kw, size):
    fig,axs = subplots(2, 3, sharex=True, **kw)
    assert tuple(fig.get_size_inches())==size and axs.shape==(2,3) and axs[0,0].get_shared_x_axes().joined(axs[0,0], axs[1,2])
    assert (fig.get_suptitle() or None)==kw.get('suptitle')
    fig.canvas.draw()
    plt.close(fig)

def test_subplots_are_an_array_always():
    for n,shape in (((), (1,)), ((1,2), (2,))):
        fig,axs = subplots(*n)
        assert axs.shape==shape
        plt.close(fig)

def test_a_whole_file_is_for_those_who_may_read_others(tmp_path):
    "Also where the writer makes a file of its own, for its user only"
    from safetensors.torch import save_file
    (tmp_path/'other').touch()
    f = write_whole(tmp_path/'a.safetensors', lambda o: save_file({'a': torch.ones(1)}, o))
    assert f.stat().st_mode==(tmp_path/'other').stat().st_mode

def test_a_full_disk_has_a_sentence_with_the_name_of_the_file(tmp_path):
    from safetensors import SafetensorError
    def full(o): raise SafetensorError('I/O error: No space left on device')
    with pytest.raises(OSError, match='a.safetensors could not be written: .*No space left'): write_whole(tmp_path/'a.safetensors', full)
    def short(o): o.write_text('a'), os.write(os.open('/dev/full', os.O_WRONLY), b'a')
    if os.path.exists('/dev/full'):
        with pytest.raises(OSError, match="No space left on device: .*b.csv'"): write_whole(tmp_path/'b.csv', short)
    def other(o): raise ConnectionError('refused')
    with pytest.raises(ConnectionError, match='^refused$'): write_whole(tmp_path/'b.csv', other)
    with pytest.raises(FileNotFoundError, match="directory: '/no/such'"): write_whole(tmp_path/'b.csv', lambda o: open('/no/such'))
    assert not list(tmp_path.iterdir())
