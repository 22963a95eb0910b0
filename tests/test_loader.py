"The loader: what it promises, and real faults, each of which ends in its sentence, in seconds, with no process left"
import copy,gc,itertools,multiprocessing as mp,os,pickle,random,signal,subprocess,sys,threading,time,warnings
from collections import UserDict,defaultdict,namedtuple
from contextlib import suppress
from pathlib import Path

import numpy as np,pytest,torch
from PIL import Image
from torch.nn.utils.rnn import PackedSequence,pack_sequence
from torch.utils.data import ConcatDataset,DataLoader as TorchLoader,Subset,TensorDataset

from conftest import children,gone,until
from scratchai.collect import verify_images
from scratchai.files import Dataset,get_image_files
from scratchai.loader import DataLoader,ItemError,LoaderError,ProcessPoolExecutor,collate

linux = pytest.mark.skipif(sys.platform!='linux', reason='looks into /proc')
contexts = [o for o in ('fork','forkserver','spawn') if o in mp.get_all_start_methods()]
pytestmark = pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning') # from Python 3.12 on
Pair = namedtuple('Pair', 'x y')

class Numbers:
    "Items with random parts that take a while"
    def __init__(self, n=64, wait=0.): self.n,self.wait = n,wait
    def __len__(self): return self.n
    def __getitem__(self, i):
        time.sleep(self.wait)
        return torch.tensor([i,int(torch.randint(10**9, (1,))),np.random.randint(10**9),random.randrange(10**9)]),i

class Who(Numbers):
    "Items that say which process made them"
    def __getitem__(self, i): return super().__getitem__(i)[0],os.getpid()

def rows(dl): return torch.cat([x for x,y in dl])
def firsts(it): return [x[:,0].tolist() for x,_ in it]
def pids(dl): return set(dl._workers.ex._processes)

def says(f, *words, err=LoaderError, limit=60):
    "`f` ends in an error with these words, within `limit` seconds"
    t = time.monotonic()
    with pytest.raises(err) as e: f()
    assert all(o in str(e.value) for o in words), (words, str(e.value))
    assert time.monotonic()-t<limit
    return str(e.value)

def program(body, **kwargs):
    "A program of its own with what is in this file"
    head = f'import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_loader\nfrom test_loader import *\n'
    return subprocess.Popen([sys.executable,'-c',head+body], stdout=-1, stderr=-2, text=True, start_new_session=True, **kwargs)

# what a batch is

def test_collate():
    b = collate([{'a':1,'b':'x'}, {'b':'y','a':2}])
    assert b['a'].tolist()==[1,2] and b['b']==['x','y']
    assert torch.equal(collate([np.ones(2), np.zeros(2)]), torch.stack([torch.ones(2), torch.zeros(2)]).double())
    assert collate([1.,2.]).dtype==torch.float32 and collate([np.bool_(True), np.bool_(False)]).dtype==torch.bool
    x,none = collate([(1,None), (2,None)])
    assert x.tolist()==[1,2] and none==[None,None]
    assert collate([Pair(1,2), Pair(3,4)]).y.tolist()==[2,4]
    class Two(tuple): pass
    b = collate([(Two((1,2)),torch.Size([5]),[1]), (Two((3,4)),torch.Size([6]),[2])])
    assert type(b[0]) is Two and b[0][1].tolist()==[2,4] and type(b[1]) is tuple is type(b[2]) and b[1][0].tolist()==[5,6]
    d = collate([defaultdict(list, a=i) for i in range(3)])
    assert type(d) is defaultdict and d['a'].tolist()==[0,1,2] and d['b']==[]
    assert type(collate([UserDict(a=1)]*2)) is UserDict

class Marked(torch.Tensor):
    "A subclass whose arithmetic gives plain tensors, and which travels as one"
    __torch_function__ = torch._C._disabled_torch_function_impl
    def __reduce_ex__(self, protocol): return torch.Tensor.as_subclass,(self.as_subclass(torch.Tensor),Marked)
    def __deepcopy__(self, memo): return self.clone().as_subclass(Marked)

class Views:
    "Channels-first views of channels-last bytes"
    random = False
    def __init__(self, size, cls=torch.Tensor): self.size,self.cls = size,cls
    def __len__(self): return 6
    def __getitem__(self, i): return torch.arange(i, i+self.size**2*3).to(torch.uint8).view(self.size, self.size, 3).permute(2,0,1).as_subclass(self.cls),i

def test_collate_keeps_memory_as_it_is():
    for c,last in ((3,True),(1,False),(4,True)):
        xs = [torch.rand(5,7,c).permute(2,0,1) for _ in range(3)]
        b = collate(xs)
        assert torch.equal(b, torch.stack(xs)) and b.is_contiguous(memory_format=torch.channels_last) and b.is_contiguous()!=last
    assert collate([torch.rand(3,5,7)]*2).is_contiguous() and collate([torch.rand(5,7).T]*2).shape==(2,7,5)
    mixed = [torch.rand(5,7,3).permute(2,0,1), torch.rand(3,5,7)]
    assert torch.equal(collate(mixed), torch.stack(mixed))
    with pytest.raises(RuntimeError): collate([torch.rand(5,7,3).permute(2,0,1), torch.rand(5,7)])
    assert type(collate([np.ma.array([1,2])]*2)) is torch.Tensor and collate([torch.eye(3).to_sparse()]*2).is_sparse

@pytest.mark.parametrize('size', (8,64)) # a batch that is piped, and one in shared memory
@pytest.mark.parametrize('cls', (torch.Tensor,Marked))
def test_views_and_subclasses_cross_the_border(size, cls):
    (want,_), = DataLoader(Views(size, cls), 6, n_workers=0)
    with DataLoader(Views(size, cls), 6, n_workers=1) as dl: (x,y), = dl
    assert type(x) is type(want) is cls and torch.equal(x, want) and y.tolist()==list(range(6)) and not x.is_shared()
    assert x.stride()==want.stride() and x.stride(1)==1 and x.shape==(6,3,size,size)

@pytest.mark.parametrize('items', [[dict(a=1), dict(a=1, b=2)], [dict(a=1, b=2), dict(a=1)], [{}, dict(a=1)], [([1,2,3],0), ([1,2],1)]])
def test_collate_refuses(items):
    with pytest.raises(ValueError): collate(items)

def nested(items):
    "A batch of every kind of nest"
    seqs = [torch.ones(int(y)+1)*y for _,y in items]
    return dict(d=defaultdict(list, a=torch.arange(3)), u=UserDict(b=torch.ones(2**16)), p=pack_sequence(seqs, enforce_sorted=False),
        n=Pair(torch.zeros(2), 'text'), l=[np.ones(3), None, 5])

def test_nests_through_workers():
    with DataLoader(Numbers(4), 4, n_workers=1, collate_fn=nested) as dl: b, = dl
    want = nested([(None,i) for i in range(4)])
    assert type(b['d']) is defaultdict and b['d']['c']==[] and torch.equal(b['d']['a'], torch.arange(3))
    assert type(b['u']) is UserDict and not b['u']['b'].is_shared()
    assert type(b['p']) is PackedSequence and torch.equal(b['p'].data, want['p'].data) and not b['p'].data.is_shared()
    assert b['n'].y=='text' and b['l'][1:]==[None,5]

def layouts():
    x = torch.arange(120.).view(2,3,4,5)
    return [x.permute(0,3,1,2), x.transpose(1,3), x[:,::2], x[...,None].expand(-1,-1,-1,-1,2), x[0,0,0,0], torch.zeros(0,3).t(),
        torch.view_as_complex(x[...,:2].contiguous()).conj(), x.bool().permute(3,2,1,0), x.half(), x.bfloat16(),
        torch.rand(2,64,64,3).permute(0,3,1,2), torch.rand(99,99).bfloat16()]

def test_tensors_through_workers():
    with DataLoader([0], 1, n_workers=1, collate_fn=lambda b: layouts(), seed=1) as dl:
        for b,a in zip(dl[0], next(iter(dl)), strict=True):
            assert torch.equal(a, b) and a.dtype==b.dtype
            if a.numel()>2**13: assert a.stride()==b.stride() # a convolution may round differently over another layout
    with DataLoader([torch.eye(3).to_sparse()*i for i in range(4)], 2, n_workers=1) as dl, warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Sparse invariant')
        assert torch.equal(torch.cat([o.to_dense() for o in dl])[:,0,0], torch.arange(4.))

# exactness

@pytest.mark.parametrize('context', contexts)
def test_same_for_every_start_method(context):
    want = [rows(DataLoader(Numbers(), 8, shuffle=True, n_workers=0, seed=3)) for _ in range(1)][0]
    with DataLoader(Numbers(), 8, shuffle=True, n_workers=2, seed=3, context=context) as dl:
        assert torch.equal(rows(dl), want)
        assert not torch.equal(rows(dl), want)

class Noisy:
    def __len__(self): return 96
    def __getitem__(self, i): return torch.rand(8)+i/96+np.random.rand()*random.random(),i%3

def trained(**kwargs):
    "The weights of a small model after three epochs on random items"
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(8,16), torch.nn.ReLU(), torch.nn.Linear(16,3))
    opt = torch.optim.SGD(model.parameters(), lr=.1, momentum=.9)
    with DataLoader(Noisy(), 16, shuffle=True, seed=5, **kwargs) as dl:
        for xb,yb in itertools.chain(dl, dl, dl):
            torch.nn.functional.cross_entropy(model(xb.float()), yb).backward()
            opt.step()
            opt.zero_grad()
    return torch.cat([p.detach().flatten() for p in model.parameters()])

@pytest.mark.parametrize('context', contexts)
def test_same_weights(context):
    want = trained(n_workers=0)
    for n in (1,2,4) if context=='fork' else (2,): assert torch.equal(trained(n_workers=n, context=context), want)

def test_generators_are_left_alone():
    before = torch.get_rng_state(),random.getstate(),str(np.random.get_state())
    dl = DataLoader(Numbers(8), 4, seed=1, n_workers=0)
    list(dl), dl.one_batch()
    assert torch.equal(before[0], torch.get_rng_state()) and before[1:]==(random.getstate(),str(np.random.get_state()))

def test_seed_is_drawn_from_pytorch():
    seeds = []
    for _ in range(2):
        torch.manual_seed(5)
        seeds.append(DataLoader([1], n_workers=0).seed)
    assert seeds[0]==seeds[1]!=DataLoader([1], n_workers=0).seed

class Own:
    "Draws from a generator of its own"
    def __init__(self): self.rng = np.random.default_rng()
    def __len__(self): return 8
    def __getitem__(self, i): return self.rng.random()
class Seeded(Own):
    def reseed(self, s): self.rng = np.random.default_rng(s)

@pytest.mark.parametrize('rng', [random.Random(1), np.random.default_rng(1), np.random.RandomState(1), torch.Generator()])
def test_a_generator_without_reseed_warns(rng):
    ds = Own()
    ds.rng = rng
    with DataLoader(ds, 4, n_workers=1, collate_fn=len) as dl, pytest.warns(UserWarning, match='ds.rng.*reseed'):
        try: list(dl)
        except ItemError: pass

def test_reseed():
    def drawn(n):
        with DataLoader(Seeded(), 2, n_workers=n, seed=1) as dl: return [b.tolist() for _ in range(2) for b in dl]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        want = drawn(0)
        assert [drawn(n) for n in (1,2)]==[want]*2 and len(set(sum(want, [])))==16

def test_random_false_is_not_seeded():
    ds = Numbers(4)
    ds.random = False
    torch.manual_seed(0)
    a = rows(DataLoader(ds, 4, n_workers=0, seed=1))
    assert not torch.equal(a, rows(DataLoader(Numbers(4), 4, n_workers=0, seed=1)))

class Many(Numbers):
    "Gives many items in one call, and can say that it cannot"
    fns = [f'{i}.jpg' for i in range(64)]
    def __getitem__(self, i):
        if i==37: raise OSError('nothing there')
        return super().__getitem__(i)
    def __getitems__(self, idxs):
        if 37 in idxs: raise OSError('all or nothing')
        r = torch.rand(len(idxs))
        return [(torch.tensor([i,x]),i) for i,x in zip(idxs, r)]

def test_getitems():
    def drawn(n): return rows(DataLoader(Many(32), 8, shuffle=True, n_workers=n, seed=2))
    assert torch.equal(drawn(0), drawn(2)) and len(set(drawn(0)[:,1].tolist()))==32
    says(lambda: list(DataLoader(Many(), 8, n_workers=1)), 'Item 37 (37.jpg)', err=ItemError)
    class Without(Numbers): __getitems__ = None
    assert torch.equal(rows(DataLoader(Without(), 8, n_workers=0, seed=3)), rows(DataLoader(Numbers(), 8, n_workers=0, seed=3)))

def test_pytorchs_data_sets():
    whole = TensorDataset(torch.randn(50,3), torch.arange(50))
    for ds in (whole, Subset(whole, range(5,45)), ConcatDataset([whole,whole]), Subset(Numbers(9), [3,1,2])):
        want = [o[1].tolist() for o in TorchLoader(ds, 8)]
        for n in (0,2):
            with DataLoader(ds, 8, n_workers=n) as dl: assert [o[1].tolist() for o in dl]==want

def test_in_memory_needs_no_workers():
    ds = Who(8)
    ds.in_memory = True
    assert {int(o) for _,y in DataLoader(ds, 4, n_workers=2) for o in y}=={os.getpid()}

class Late:
    "A file of 4-byte numbers, opened when the first is asked for"
    def __init__(self, fn): self.fn,self.f = fn,None
    def __len__(self): return 400
    def __getitem__(self, i):
        if self.f is None: self.f = open(self.fn, 'rb', buffering=0)
        self.f.seek(4*i)
        time.sleep(.0002)
        return torch.tensor(np.frombuffer(self.f.read(4), np.int32).copy())

def test_a_look_opens_no_file_that_workers_inherit(tmp_path):
    (tmp_path/'numbers').write_bytes(np.arange(400, dtype=np.int32).tobytes())
    late = Late(tmp_path/'numbers')
    with DataLoader(late, 8, n_workers=2) as dl: assert torch.equal(torch.cat([dl.one_batch(), *dl])[8:,0], torch.arange(400))
    assert late.f is None
    assert torch.equal(torch.cat(list(DataLoader(late, 8, n_workers=0)))[:,0], torch.arange(400))

# order and place

def test_lengths():
    assert len(DataLoader(range(70), bs=64, drop_last=True))==1 and len(DataLoader(range(70), bs=64))==2
    assert len(DataLoader(range(70), bs=512, drop_last=True))==1
    for n in (0,2): assert len(dl := DataLoader([], n_workers=n))==0 and list(dl)==[]
    dl = DataLoader(range(20), 8, drop_last=True, shuffle=True, n_workers=0)
    assert [len(o) for o in dl]==[8,8] and sorted(dl.order(3).tolist())==list(range(20))
    assert torch.equal(dl.new(seed=np.int64(5)).order(1), dl.new(seed=torch.tensor(5)).order(1))
    assert not torch.equal(dl.order(0), dl.order(1)) and torch.equal(DataLoader(range(20), seed=1).order(1), torch.arange(20))

def test_arguments():
    for kwargs in (dict(bs=0), dict(prefetch=0)): says(lambda: DataLoader([1], **kwargs), 'at least 1', err=ValueError)
    says(lambda: DataLoader(iter([1])), 'has no length', err=TypeError)
    with pytest.raises(ValueError): list(DataLoader([1], n_workers=1, context='thread'))
    with pytest.raises(IndexError): DataLoader([], n_workers=0).one_batch()
    with pytest.raises(TypeError): DataLoader([1], n_workers=0).new(size=3)

def test_pytorchs_names(pictures):
    from scratchai.block import ImageDataLoaders
    from scratchai.data import folder_dls
    def how(dl): return dl.bs,dl.batch_size,dl.n_workers,dl.num_workers
    dl = DataLoader(range(10), 2, n_workers=2, batch_size=4, num_workers=1) # they win
    assert how(dl)==how(dl.new())==how(dl.new(batch_size=None, num_workers=None))==(4,4,1,1) and len(dl[0])==4
    assert how(dl.new(bs=5, n_workers=0))==how(dl.new(batch_size=5, num_workers=0))==(5,5,0,0)
    says(lambda: DataLoader([1], batch_size=0), '`bs`', 'at least 1', err=ValueError)
    path = pictures(train_cat=3, train_dog=3, val_cat=3, val_dog=2)
    for make in (folder_dls, ImageDataLoaders.from_folder):
        dls = make(path, size=8, batch_size=2, num_workers=0, device='cpu')
        assert [how(o) for o in dls]==[(2,2,0,0)]*2 and [len(y) for _,y in dls.valid]==[2,2,1] and dls.bs==2
        assert [[how(o) for o in dls.new(**k)] for k in (dict(bs=3), dict(batch_size=3, num_workers=0))]==[[(3,3,0,0)]*2]*2
    assert how(dls.test_dl(dls.valid_ds.items, batch_size=3))==(3,3,0,0)
    dls = ImageDataLoaders.from_folder(path, batch_size=2, val_bs=3, num_workers=0, device='cpu')
    assert [o.bs for o in dls]==[2,3]

def test_batch_by_number():
    dl = DataLoader(range(10), 4, n_workers=2)
    assert dl[2].tolist()==dl[-1].tolist()==[8,9] and dl.one_batch().tolist()==[0,1,2,3]
    assert dl._workers is None and dl.state_dict()['position']==0
    with pytest.raises(IndexError): dl[3]

def test_place():
    dl = DataLoader(Numbers(60), 6, n_workers=0, seed=1)
    with pytest.raises(KeyboardInterrupt):
        for i,b in enumerate(dl):
            if i==2: raise KeyboardInterrupt
    assert dl.state_dict()==dict(seed=1, epoch=0, position=3)
    other = DataLoader(Numbers(60), 6, n_workers=2)
    other.load_state_dict(dl.state_dict())
    want = [list(range(i, i+6)) for i in range(0, 60, 6)]
    assert firsts(other)==want[3:] and other.epoch==1
    for i,b in enumerate(dl): # the next iteration takes the next epoch
        if i==9: assert (dl.epoch,dl.position)==(2,0)
    a,b = iter(dl),iter(dl)
    next(a), next(b), next(a), next(a) # the newer of two counts
    assert (dl.epoch,dl.position)==(3,1)
    dl.set_epoch(7)
    assert dl.state_dict()==dict(seed=1, epoch=7, position=0)

def test_resume_in_another_process():
    def body(state, n): return f"""
dl = DataLoader(Numbers(40), 4, shuffle=True, seed=9, n_workers=2)
dl.load_state_dict({state})
it = iter(dl)
b = [next(it)[0].tolist() for _ in range({n})]
print(repr((b, dl.state_dict())))
dl.close()
"""
    def out(*args): return eval(program(body(*args)).communicate(timeout=120)[0])
    whole,_ = out(dict(seed=9, epoch=1, position=0), 10)
    begun,state = out(dict(seed=9, epoch=1, position=0), 4)
    assert begun+out(state, 6)[0]==whole

# workers

def test_look_ahead_is_bounded():
    n = mp.get_context('fork').Value('i', 0)
    class Counted(Numbers):
        def __getitem__(self, i):
            with n: n.value += 1
            return i
    with DataLoader(Counted(), 1, n_workers=2, prefetch=3) as dl:
        it = iter(dl)
        next(it)
        time.sleep(.3)
        assert n.value<=1+2*3

def test_workers_are_kept():
    with DataLoader(Numbers(8), 2, n_workers=2) as dl:
        list(dl)
        first = pids(dl)
        list(dl)
        assert pids(dl)==first
    assert gone(first)

def test_changed_attributes_start_new_workers():
    ds = Numbers(8)
    ds.items = [1]*4
    with DataLoader(ds, 2, n_workers=2) as dl:
        it = iter(dl)
        next(it)
        first = pids(dl)
        ds.n = 6 # a new object
        assert firsts(dl)==[[0,1],[2,3],[4,5]] and pids(dl)!=first
        assert firsts(it)==[[2,3],[4,5],[6,7]] # the other epoch goes on as it began
        second = pids(dl)
        ds.items.append(1) # the same list: the user says so
        list(dl)
        assert pids(dl)==second
        dl.close()
        list(dl)
        third = pids(dl)
        dl.collate_fn = list
        list(dl)
        assert not pids(dl)&third&second

def test_copies():
    with DataLoader(Numbers(60), 6, n_workers=2, seed=4, after_batch=Double()) as dl:
        a = iter(dl)
        next(a)
        for other in (copy.deepcopy(dl), pickle.loads(pickle.dumps(dl))):
            assert (other.seed,other.epoch,other.position,other._workers)==(4,0,1,None)
            assert other.after_batch[0] is not dl.after_batch[0]
            assert len(list(other))==9 and not pids(other)&pids(dl)
            other.close()
        assert copy.deepcopy(dl).ds is dl.ds
        assert len(list(a))==9
        new = dl.new(bs=10, shuffle=True)
        assert (new.bs,new.seed,new.position,new.split_idx,len(new))==(10,4,0,1,6)

class Double:
    split_idx = None
    def __call__(self, b): return b[0]*2,b[1]

def test_after_batch():
    t = Double()
    def first(shuffle): return DataLoader([(torch.tensor(1.),0)]*4, 4, shuffle, n_workers=0, after_batch=t, device='cpu').one_batch()[0][0].item()
    assert first(True)==first(False)==2
    t.split_idx = 0
    assert (first(True),first(False))==(2,1)
    t.split_idx = 1
    assert (first(True),first(False))==(1,2)

def test_one_thread_while_batches_arrive():
    old,seen = torch.get_num_threads(),[]
    torch.set_num_threads(2)
    def note(b): return seen.append(torch.get_num_threads()) or b
    try:
        for n in (2,0):
            with DataLoader(Numbers(8), 4, n_workers=n, after_batch=note) as dl:
                for b in dl: seen.append(torch.get_num_threads())
    finally: torch.set_num_threads(old)
    assert seen==[1,2,1,2,2,2,2,2]

def threads(i): return torch.get_num_threads(),os.getpid(),os.environ.get('OMP_WAIT_POLICY'),seen
seen = 'no'
def see(o): globals().update(seen=o)

@pytest.mark.parametrize('context', contexts)
def test_executor(context, monkeypatch):
    monkeypatch.delenv('OMP_WAIT_POLICY', raising=False)
    with ProcessPoolExecutor(2, mp_context=mp.get_context(context), initializer=see, initargs=('yes',)) as ex: res = list(ex.map(threads, range(3)))
    assert {(n,s) for n,_,_,s in res}=={(1,'yes')} and os.getpid() not in {o[1] for o in res}
    if context=='spawn': assert {o[2] for o in res}=={'passive'}
    with ProcessPoolExecutor(0) as ex: assert {o[1] for o in ex.map(threads, range(2))}=={os.getpid()}

def test_users_wait_policy_wins(monkeypatch):
    monkeypatch.setenv('OMP_WAIT_POLICY', 'active')
    with ProcessPoolExecutor(1, mp_context=mp.get_context('spawn')) as ex: assert list(ex.map(threads, [0]))[0][2]=='active'

def test_training_does_not_hang_workers():
    out = program("""
torch.set_num_threads(2)
def train(): torch.nn.Linear(1000,1000)(torch.randn(1000,1000)).sum().backward()
def stack(b): return torch.stack([torch.ones(3,64,64)]*64)
train()
for b in DataLoader(Numbers(32), 4, n_workers=2, collate_fn=stack): train()
print('trained')
""").communicate(timeout=120)[0]
    assert 'trained' in out, out

# errors

def jpegs(d, n=12):
    d.mkdir(exist_ok=True)
    for i in range(n): Image.effect_noise((64,64), 50).convert('RGB').save(d/f'{i:02}.jpg')
    return [d/f'{i:02}.jpg' for i in range(n)]

def test_bad_files(tmp_path):
    fns = jpegs(tmp_path/'pics')
    fns[3].write_bytes(fns[3].read_bytes()[:700])
    Image.open(fns[4]).convert('P').save(fns[4], 'GIF')
    fns[5].write_bytes(b'')
    ds = Dataset(fns, labels=[0]*12)
    fns[6].unlink()
    fns[7].unlink()
    fns[7].mkdir()
    for n in (0,2): says(lambda: list(DataLoader(ds, 4, n_workers=n)), 'Item 3', '03.jpg', 'cannot be read', err=ItemError)
    for n in (0,2):
        with DataLoader(ds, 4, n_workers=n, skip_bad=True) as dl:
            for _ in range(2):
                with pytest.warns(UserWarning, match='4 of 12 items.*03.jpg') as w: assert sum(len(y) for _,y in dl)==8
                assert w.pop(UserWarning).filename==__file__ and [e.index for e in dl.bad]==[3,5,6,7]
    assert [Path(p).name for p in verify_images(fns, n_workers=2, progress=False)]==['03.jpg','05.jpg','06.jpg','07.jpg']
    first_bad = DataLoader(Dataset([fns[5],fns[0]], labels=[0]*2), bs=1, n_workers=0, skip_bad=True)
    says(first_bad.one_batch, '05.jpg', err=ItemError)
    with pytest.warns(UserWarning): assert len(list(first_bad))==1

def test_sizes_that_differ(tmp_path):
    fns = jpegs(tmp_path/'pics', 3)
    Image.open(fns[2]).resize((20,30)).save(fns[2])
    for n in (0,1): says(lambda: list(DataLoader(Dataset(fns, labels=[0]*3, size=None), 3, n_workers=n)), '3 items do not make a batch: RuntimeError',
        f'Sizes: item {fns[0]} has (64, 64, 3); item {fns[2]} has (30, 20, 3).')

@pytest.mark.parametrize('items,sizes', [
    ([dict(x=torch.ones(2,3), y=[np.ones(4),1])]*2+[dict(x=torch.ones(2,4), y=[np.ones(4),1])], 'item 0 has (2, 3) and (4,); item 2 has (2, 4) and (4,).'),
    ([(torch.ones(2), torch.ones(2).shape, 0), (torch.ones(3), torch.ones(3).shape, 1)], 'item 0 has (2,); item 1 has (3,).'),
    ([([1,2,3],0), ([1,2],1)], 'item 0 has 4 values; item 1 has 3 values.')])
def test_sizes_of_nests(items, sizes): says(lambda: DataLoader(items, 3, n_workers=0).one_batch(), f'Sizes: {sizes}')

def test_error_of_the_collate_function():
    says(lambda: list(DataLoader(range(4), 2, n_workers=1, collate_fn=lambda b: 1/0)), '2 items do not make a batch', 'ZeroDivisionError')

def test_traceback_of_the_item():
    try: list(DataLoader(Many(), 8, n_workers=1))
    except ItemError as e: assert 'nothing there' in str(e.__cause__) and 'test_loader.py' in str(e.__cause__)

def test_what_cannot_be_sent():
    says(lambda: list(DataLoader(range(4), 2, n_workers=1, collate_fn=lambda b: (lambda: b))), 'pickle', 'n_workers=0')
    ds = Numbers()
    ds.f = lambda: 1
    says(lambda: list(DataLoader(ds, 2, n_workers=1, context='spawn')), 'pickle')

class Ends(Numbers):
    "Item 7 ends its process"
    def __getitem__(self, i):
        if i==7: os._exit(3)
        return super().__getitem__(i)

def test_exit_status(): says(lambda: list(DataLoader(Ends(), 4, n_workers=2)), 'ended with exit status 3')

@linux
@pytest.mark.parametrize('context', contexts)
def test_killed_worker(context):
    with DataLoader(Numbers(wait=.02), 4, n_workers=2, context=context) as dl:
        it = iter(dl)
        next(it)
        all = pids(dl)
        os.kill(min(all), signal.SIGKILL)
        says(lambda: list(it), 'killed by SIGKILL')
        assert gone(all)
        if context=='fork': assert len(rows(dl))==64

@linux
def test_stopped_workers():
    with DataLoader(Numbers(wait=.02), 4, n_workers=2) as dl:
        it = iter(dl)
        next(it)
        list(it)
        dl.timeout = 1
        it = iter(dl)
        next(it)
        all = pids(dl)
        for p in all: os.kill(p, signal.SIGSTOP)
        says(lambda: list(it), 'no batch came within 1 seconds', limit=20)
        assert gone(all)

def test_slow_item():
    with DataLoader(Numbers(4, wait=30), 2, n_workers=1, timeout=.5) as dl: says(lambda: list(dl), 'within 0.5 seconds', limit=20)

def test_close_ends_an_epoch():
    dl = DataLoader(Numbers(60, .003), 6, n_workers=2)
    a = iter(dl)
    next(a), dl.close()
    b = iter(dl)
    next(b)
    says(lambda: list(a), 'were ended')
    assert len(list(b))==9
    dl.close()

def test_several_threads():
    for _ in range(3):
        dl,got = DataLoader(Numbers(24), 6, n_workers=2),[]
        ts = [threading.Thread(target=lambda: got.append(firsts(dl))) for _ in range(4)]
        for o in ts: o.start()
        for o in ts: o.join()
        assert got==[[list(range(i, i+6)) for i in range(0, 24, 6)]]*4
        dl.close()

@linux
def test_forgotten_loaders():
    for _ in range(3):
        dl = DataLoader(Numbers(), 4, n_workers=2)
        for b in dl: break
    all = pids(dl)
    del dl,b
    gc.collect()
    assert gone(all)

# processes in processes

def train_in_child(q=None):
    "What a program does that trains in another process, and closes nothing"
    dl = DataLoader(Numbers(), 8, n_workers=2, seed=3)
    globals()['kept'] = dl # alive until the process ends
    res = rows(dl)[:,0].tolist()
    iter(dl).__next__()
    return q.put(res) if q else res

@linux
@pytest.mark.parametrize('context', contexts)
def test_in_a_child_process(context):
    ctx = mp.get_context(context)
    q = ctx.SimpleQueue()
    p = ctx.Process(target=train_in_child, args=(q,))
    p.start()
    assert q.get()==list(range(64))
    p.join(30)
    assert p.exitcode==0

@linux
@pytest.mark.parametrize('context', ['fork','spawn'])
def test_in_a_worker_of_a_pool(context):
    with ProcessPoolExecutor(1, mp_context=mp.get_context(context)) as ex: assert ex.submit(train_in_child).result(60)==list(range(64))

def in_daemon(q):
    try: train_in_child(q)
    except LoaderError as e: q.put(str(e))

@linux
def test_in_a_daemon():
    ctx = mp.get_context('fork')
    q = ctx.SimpleQueue()
    p = ctx.Process(target=in_daemon, args=(q,), daemon=True)
    p.start()
    res = q.get()
    assert 'daemon' in res and 'n_workers=0' in res, res
    p.join(30)

@linux
def test_process_forked_after_the_workers():
    with DataLoader(Numbers(), 8, n_workers=2, seed=3) as dl:
        list(dl)
        ours = pids(dl)
        ctx = mp.get_context('fork')
        q = ctx.SimpleQueue()
        def child():
            q.put((rows(dl)[:,0].tolist(), list(pids(dl))))
            dl.close()
        p = ctx.Process(target=child)
        p.start()
        got,theirs = q.get()
        p.join(30)
        assert p.exitcode==0 and got==list(range(64)) and not set(theirs)&ours
        assert len(rows(dl))==64 and pids(dl)==ours

script = """
import torch
from scratchai.loader import *
class Squares:
    def __len__(self): return 8
    def __getitem__(self, i): return i*i
{}
"""
def run_script(tmp_path, body):
    (tmp_path/'work.py').write_text(script.format(body))
    p = subprocess.run([sys.executable,tmp_path/'work.py'], capture_output=True, text=True, timeout=120)
    return p.stdout+p.stderr

@pytest.mark.parametrize('context', ['forkserver','spawn'])
def test_class_in_a_guarded_script(tmp_path, context):
    out = run_script(tmp_path, f"if __name__=='__main__': print(torch.cat(list(DataLoader(Squares(), 4, n_workers=2, context={context!r}))).tolist())")
    assert '[0, 1, 4, 9, 16, 25, 36, 49]' in out, out

def test_script_without_a_guard(tmp_path):
    out = run_script(tmp_path, "list(DataLoader(Squares(), 4, n_workers=2, context='spawn'))")
    assert 'The loader stopped: a worker ended with exit status 1' in out and "if __name__ == '__main__':" in out, out

def group(pgid):
    "All processes of a process group, but for those that wait to be reaped"
    rows = subprocess.run(['ps','-eo','pid,pgid,stat'], capture_output=True, text=True).stdout.splitlines()[1:]
    return [int(p) for p,g,st in map(str.split, rows) if int(g)==pgid and 'Z' not in st]

@linux
@pytest.mark.parametrize('sig,context', [(s,'fork') for s in ('SIGINT','SIGTERM','SIGKILL')]+[('SIGINT','spawn'),('SIGKILL','spawn'),
    ('SIGTERM','forkserver'),('SIGKILL','forkserver')])
def test_the_program_ends_by_a_signal(sig, context):
    "In mid-epoch, when each worker has made a batch"
    p = program(f"""
if __name__=='__main__':
    dl,who = DataLoader(test_loader.Who(10**6, .01), 4, n_workers=2, context={context!r}),set()
    for x,y in dl:
        if len(who)<2 and len(who := who|set(y.tolist()))==2: print(*pids(dl), flush=True)
""")
    line = p.stdout.readline()
    assert len(line.split())==2, line+p.communicate()[0]
    all = group(p.pid) # the server of forks and the resource tracker too
    assert len(all)>=(5 if context=='forkserver' else 3), all
    (os.killpg if sig=='SIGINT' else os.kill)(p.pid, signal.Signals[sig])
    out = p.communicate(timeout=120)[0]
    assert gone(all), 'processes were left behind'
    if sig=='SIGINT': assert out.count('Traceback')==1 and 'KeyboardInterrupt' in out, out

# limits of the system

class Wide(Numbers):
    def __getitem__(self, i): return torch.full((40,40,3), i, dtype=torch.uint8),i

def n_files(): return len(os.listdir('/proc/self/fd'))

@linux
def test_descriptors_do_not_grow():
    with DataLoader(Wide(), 8, n_workers=2) as dl:
        kept = list(dl)
        n = n_files()
        for _ in range(5): kept += dl
        assert n_files()<=n+1 and not any(x.is_shared() for x,_ in kept)

def pieces(b): return [torch.ones(i+1) for i in range(200)]

@linux
def test_few_descriptors():
    "64 of them: a loader works, also with 200 tensors a batch; one too many says so"
    out = program("""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
with DataLoader(Wide(), 4, n_workers=2) as dl:
    for _ in range(5): n = len(rows(dl))
print(n, len(list(DataLoader(Numbers(), 4, n_workers=2, collate_fn=pieces))))
try: rows(DataLoader(Numbers(), 4, n_workers=64))
except LoaderError as e: print(e)
""").communicate(timeout=120)[0]
    assert out.startswith('64 16\n') and 'Too many open files' in out and 'file descriptors' in out, out

@linux
def test_full_shared_memory():
    "A /dev/shm of 64 KB, really: a sentence that names it; small batches go through the pipe"
    if subprocess.run(['unshare','-m','true'], capture_output=True).returncode: pytest.skip('no right to unshare')
    body = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_loader import *
try: rows(DataLoader(Wide(), 64, n_workers=2, timeout=20))
except LoaderError as e: print(e)
print(len(rows(DataLoader(Wide(), 2, n_workers=2))))
"""
    cmd = ['unshare','-m','sh','-c','mount -t tmpfs -o size=64k none /dev/shm && exec "$@"','-',sys.executable,'-c',body]
    out = subprocess.run(cmd, capture_output=True, text=True, timeout=120).stdout
    assert '/dev/shm' in out and out.endswith('64\n'), out

class Named(Dataset):
    "Touches the name of each of its files, and reads none"
    random = False
    def decode(self, i): return torch.full((8,8,3), len(self.fns.name(i))%256, dtype=torch.uint8)

def own(pid):
    "Megabytes that process `pid` alone has written"
    lines = Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()
    return sum(int(o.split()[1]) for o in lines if o.startswith('Private_Dirty'))/1e3

class Part:
    "Every twentieth item"
    def __init__(self, ds): self.ds,self.random = ds,False
    def __len__(self): return len(self.ds)//20
    def __getitem__(self, i): return self.ds[20*i]

def growth(ds, epochs=20, since=3):
    "Megabytes that the parent and the larger worker have gained between epoch `since` and the last of `epochs` with a slow consumer"
    with DataLoader(Part(ds), 250, shuffle=True, n_workers=2, seed=1) as dl:
        for epoch in range(epochs):
            for b in dl: time.sleep(.001)
            now = [own(o) for o in (os.getpid(),*pids(dl))]
            if epoch==since: first = now
    gain = [b-a for a,b in zip(first, now)]
    return gain[0],max(gain[1:])

@linux
@pytest.mark.slow
def test_memory_does_not_grow():
    "200,000 files, twenty epochs of 10,000: nothing grows, neither here nor in the workers"
    fns = [f'/data/pictures/train/n{i%1000:08}/n{i%1000:08}_{i}.JPEG' for i in range(200_000)]
    parent,worker = growth(Named(fns, labels=[0]*len(fns)))
    assert parent<8 and worker<8, (parent, worker)

# pictures

def test_verify(tmp_path):
    fns = jpegs(tmp_path/'pics', 3)
    fns[1].write_bytes(b'nothing')
    for n in (0,2): assert [(o,'UnidentifiedImageError' in o.cause) for o in verify_images(tmp_path/'pics', n_workers=n, progress=False)]==[(fns[1],True)]
    assert verify_images([fns[0]], n_workers=0)==verify_images([], n_workers=0)==[]

@linux
def test_worker_killed_in_verify(tmp_path):
    os.mkfifo(tmp_path/'a.jpg') # reading it waits for ever
    def reads(pid):
        with suppress(OSError): return any(o.resolve()==tmp_path/'a.jpg' for o in Path(f'/proc/{pid}/fd').iterdir())
    def kill():
        fd = os.open(tmp_path/'a.jpg', os.O_WRONLY) # waits until the worker has opened it
        os.kill(until(lambda: [o for o in children() if reads(o)])[0], signal.SIGKILL)
        os.close(fd)
    threading.Thread(target=kill).start()
    says(lambda: verify_images([tmp_path/'a.jpg'], n_workers=1, progress=False), 'killed by SIGKILL')

@pytest.mark.slow
def test_damaged_files(tmp_path):
    "Two thousand damaged files through `verify_images` and a `skip_bad` epoch"
    rng,good = np.random.default_rng(0),[]
    for fmt in ('JPEG','PNG','GIF','BMP'):
        Image.effect_noise((48,48), 60).convert('RGB').save(tmp_path/'x', fmt)
        good.append((tmp_path/'x').read_bytes())
    (tmp_path/'x').unlink()
    for i in range(2000):
        b = bytearray(good[i%4])
        if i%3==0: b = b[:rng.integers(len(b))]
        else:
            for j in rng.integers(len(b), size=rng.integers(1, 30)): b[j] = rng.integers(256)
        (tmp_path/f'{i:04}.{"jpg png gif bmp".split()[rng.integers(4)]}').write_bytes(b)
    fns = get_image_files(tmp_path)
    assert len(verify_images(fns, n_workers=2, progress=False))>500
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with DataLoader(Dataset(fns, labels=[0]*2000, size=32), 50, n_workers=2, skip_bad=True) as dl:
            assert sum(len(y) for _,y in dl)+len(dl.bad)==2000
