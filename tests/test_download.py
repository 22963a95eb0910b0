"`untar_data` under real faults: the folder is there whole or not at all, and nothing of the user's is touched"
import hashlib,io,os,re,signal,subprocess,sys,tarfile,threading,zipfile
from http.server import BaseHTTPRequestHandler,ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch

import pytest
from conftest import until

from scratchai import download
from scratchai.core import cache_dir
from scratchai.download import *

noise = os.urandom(200_000)

def tgz(*members, mode='w:gz'):
    "A tar of `(name, bytes or type of member)`"
    with tarfile.open(fileobj=(buf := io.BytesIO()), mode=mode) as t:
        for name,o in members:
            m = tarfile.TarInfo(name)
            if isinstance(o, bytes) and o not in tarfile.SUPPORTED_TYPES: m.size = len(o)
            else: m.type,m.linkname,o = o,'/etc',b''
            t.addfile(m, io.BytesIO(o))
    return buf.getvalue()

def zipped(*members):
    with zipfile.ZipFile(buf := io.BytesIO(), 'w') as z:
        for k,o in members: z.writestr(k, o)
    return buf.getvalue()

class Server(BaseHTTPRequestHandler):
    "Knows ranges, as real servers do, and misbehaves as it is told"
    log_message = lambda self, *args: None
    def do_GET(self):
        s = self.server
        data,start = s.files.get(self.path),int(re.findall(r'\d+', self.headers.get('Range', '0'))[0])
        if data is None: return self.send_error(404)
        if self.headers.get('If-Range', s.etag)!=s.etag: start = 0
        s.log.append(start)
        if start>=len(data): return self.send_error(416)
        self.send_response(206 if start else 200)
        if start: start += s.shift
        n = len(data)-start
        for k,v in {'ETag':s.etag, 'Content-Length':n, 'Content-Range':f'bytes {start}-{len(data)-1}/{len(data)}'}.items():
            if v: self.send_header(k, v)
        self.end_headers()
        s.cut,end = s.cut-1,start+(80_000 if s.cut>0 else n)
        try:
            for i in range(start, end, 2**16):
                if i>start: s.go.wait(60)
                self.wfile.write(data[i:min(i+2**16, end)])
        except OSError: pass

@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv('SCRATCHAI_HOME', str(tmp_path/'home'))
    s = ThreadingHTTPServer(('127.0.0.1', 0), Server)
    s.files,s.log,s.cut,s.shift,s.etag,s.go = {'/pics.tgz':tgz(('pics/a.txt', b'one'), ('pics/b.bin', noise))},[],0,0,'"1"',threading.Event()
    s.go.set()
    s.url = f'http://127.0.0.1:{s.server_port}'
    threading.Thread(target=s.serve_forever, args=(.02,), daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()

def get(url, *args, **kwargs): return untar_data(url, *args, progress=False, **kwargs)
def names(p): return sorted(o.name for o in p.iterdir() if o.name!='.untar_data')
def left(server): return sorted(o.name for o in cache_dir('archives').iterdir() if o.suffix=='.part'),[o.name for o in cache_dir('data').glob('.*')]

def test_urls():
    assert URLs.known[URLs.IMAGENETTE_160][0]==99003388 and URLs.IMAGENETTE_160.endswith('/imagenette2-160.tgz')
    assert all((n is None or n>9999) and (o is None or len(o)==36) for n,o in URLs.known.values())
    assert URLs.MNIST.endswith('/fast-ai-imageclas/mnist_png.tgz') and URLs.CAMVID_TINY.endswith('/fast-ai-sample/camvid_tiny.tgz')
    assert URLs.known[URLs.ML_100k]==(None,None) and URLs.known[URLs.TINY_IMAGENET][0] is None and URLs.known[URLs.BIWI_HEAD_POSE]==(452316199,None)
    for o in 'MNIST_SAMPLE MNIST_TINY PASCAL_2012 CAMVID HUMAN_NUMBERS CIFAR FOOD PLANET_TINY IMAGEWANG_160 IMDB WIKITEXT_TINY COCO_TINY DOGS'.split():
        assert URLs.known[getattr(URLs, o)][0] and getattr(URLs, o).endswith('.tgz')

def test_urls_of_your_own(server, monkeypatch):
    monkeypatch.setattr(URLs, 'known', {})
    n = len(server.files['/pics.tgz'])
    URLs.add(f'{server.url}/', f'MINE pics.tgz {n} sha256:{hashlib.sha256(server.files["/pics.tgz"]).hexdigest()}; WRONG other.tgz 7')
    server.files['/other.tgz'] = server.files['/pics.tgz']
    try:
        assert names(get(URLs.MINE))==['a.txt','b.bin']
        with pytest.raises(ValueError, match='and should have 7'): get(URLs.WRONG)
    finally: del URLs.MINE,URLs.WRONG

def test_folders_of_fastais_arguments(server, tmp_path):
    "`archive` and `data` are folders below `base`, or anywhere"
    url = f'{server.url}/pics.tgz'
    assert get(url, 'zips', 'sets', base=tmp_path/'b')==tmp_path/'b/sets/pics' and (tmp_path/'b/zips/pics.tgz.lock').exists()
    assert get(url, base=tmp_path/'c')==tmp_path/'c/data/pics' and (tmp_path/'c/archives').is_dir()
    assert get(url, data=tmp_path/'d')==tmp_path/'d/pics' and names(tmp_path/'d')==['pics']
    assert len(server.log)==3 and get(url, 'zips', 'sets', True, tmp_path/'b')==tmp_path/'b/sets/pics' and len(server.log)==4
    (tmp_path/'e').mkdir()
    (tmp_path/'e/pics.tgz').write_bytes(server.files['/pics.tgz']) # an archive that is there is not downloaded, and stays
    assert names(get(url, tmp_path/'e', base=tmp_path/'f'))==['a.txt','b.bin'] and len(server.log)==4 and (tmp_path/'e/pics.tgz').exists()
    (tmp_path/'.fastai/data/pics').mkdir(parents=True)
    (tmp_path/'.fastai/data/pics/mine').touch()
    assert names(get(url, base=tmp_path/'.fastai'))==['mine'] # what fastai has unpacked is found

def test_one_file(server, tmp_path, monkeypatch):
    server.files |= {'/a%20b.csv':b'1,2', '/big.bin':noise}
    monkeypatch.chdir(tmp_path)
    assert download_url(f'{server.url}/a%20b.csv', show_progress=False)==Path('a b.csv') and (tmp_path/'a b.csv').read_bytes()==b'1,2'
    server.cut = 2
    server.log.clear()
    assert download_url(f'{server.url}/big.bin', tmp_path/'new/x')==tmp_path/'new/x' and (tmp_path/'new/x').read_bytes()==noise and len(server.log)==3
    with pytest.raises(ConnectionError, match=r'none could not be downloaded \(HTTP Error 404: Not Found\)\.$'): download_url(f'{server.url}/none', tmp_path/'new', show_progress=False)
    with pytest.raises(ValueError, match='does not end in the name of a file'): download_url(f'{server.url}/', tmp_path/'new')
    assert download_url((tmp_path/'a b.csv').as_uri(), tmp_path/'new')==tmp_path/'new/a b.csv' and names(tmp_path/'new')==['a b.csv','x']
    server.go.clear()
    with pytest.raises(ConnectionError, match='timed out|cut'): download_url(f'{server.url}/big.bin', tmp_path/'new/slow', timeout=.1, show_progress=False)
    server.go.set()
    assert names(tmp_path/'new')==['a b.csv','x'] # no half file, no note

def test_once_and_cut(server):
    server.cut = 2
    p = untar_data(f'{server.url}/pics.tgz')
    assert p==cache_dir('data', 'pics') and names(p)==['a.txt','b.bin'] and (p/'b.bin').read_bytes()==noise
    assert server.log==[0,79_999,159_998]
    assert get(f'{server.url}/pics.tgz')==p and len(server.log)==3
    assert left(server)==([],[])

def test_no_range_without_tag(server):
    server.cut,server.etag = 1,''
    assert (get(f'{server.url}/pics.tgz')/'b.bin').read_bytes()==noise and server.log==[0,0]

def test_changed_on_server(server):
    "What is there of an old file, or of another address, is not mixed with the new one"
    part,url = cache_dir('archives', 'pics.tgz.part'),f'{server.url}/pics.tgz'
    part.parent.mkdir(parents=True)
    for tag in (f'"0"\n{url}', f'"1"\n{server.url}/elsewhere/pics.tgz', ''):
        part.write_bytes(b'x'*999), part.with_suffix('.tag').write_text(tag)
        assert (get(url, force_download=True)/'b.bin').read_bytes()==noise
    assert server.log==[0]*3

def test_sent_from_elsewhere(server):
    server.cut,server.shift = 1,1
    with pytest.raises(ConnectionError, match='bytes from 79999 were asked for, and bytes from 80000 came'): get(f'{server.url}/pics.tgz')
    assert (get(f'{server.url}/pics.tgz')/'b.bin').read_bytes()==noise and server.log==[0,79_999,0]

def test_unreachable(server):
    with pytest.raises(ConnectionError, match=r'\(HTTP Error 404: Not Found\)'): get(f'{server.url}/none.tgz')
    with pytest.raises(ConnectionError, match='refused.*put the archive at .*archives/far.tgz yourself'): get('http://127.0.0.1:9/far.tgz')
    cache_dir('archives', 'far.tgz').write_bytes(server.files['/pics.tgz'])
    assert names(get('http://127.0.0.1:9/far.tgz'))==['a.txt','b.bin'] and cache_dir('archives', 'far.tgz').exists()

def test_digest_and_size(server, tmp_path):
    url,data = f'{server.url}/pics.tgz',server.files['/pics.tgz']
    for kw in (dict(digest='sha256:'+'0'*64), dict(digest='0'*32), dict(digest='md5:'+'0'*32), dict(size=7)):
        with pytest.raises(ValueError, match='should have'): get(url, dest=tmp_path/'to', **kw)
        assert not (tmp_path/'to').exists() and left(server)[0]==[]
    sha = hashlib.sha256(data).hexdigest()
    for i,o in enumerate((sha, f'sha256:{sha.upper()}', f'md5:{hashlib.md5(data).hexdigest()}')):
        assert names(get(url, dest=tmp_path/f'to{i}', digest=o, size=len(data)))==['a.txt','b.bin']
    for o in ('sha999:00','sha256:'+'0'*32,'x'*64,'0'*63):
        with pytest.raises(ValueError): get(url, dest=tmp_path/'to', digest=o)

@pytest.mark.parametrize('name,o,why', [('../up', b'x', 'outside the destination'), ('link', tarfile.SYMTYPE, 'is a link or a device'),
    ('hard', tarfile.LNKTYPE, 'is a link or a device'), ('dev', tarfile.CHRTYPE, 'is a link or a device')])
def test_wants_out(server, name, o, why):
    server.files['/bad.tgz'] = tgz(('ok', b'x'), (name, o))
    with pytest.raises(ValueError, match=f'bad.tgz.part cannot be unpacked: .*{why}'): get(f'{server.url}/bad.tgz')
    assert not cache_dir('data').exists() or list(cache_dir('data').iterdir())==[]
    assert left(server)[0]==[]

def test_stays_below(server, tmp_path):
    "Where Python makes a name safe instead of refusing it, the file is inside"
    (tmp_path/'abs.tgz').write_bytes(tgz(('/abs.txt', b'one'), ('b', b'two')))
    (tmp_path/'up.zip').write_bytes(zipped(('../../up.txt', b'1'), ('b', b'2')))
    assert names(get(tmp_path/'abs.tgz'))==['abs.txt','b'] and names(get(tmp_path/'up.zip'))==['b','up.txt']
    assert not (tmp_path/'up.txt').exists() and not Path('/abs.txt').exists()

@pytest.mark.parametrize('fmt', ['gz','bz2','xz'])
def test_damaged(server, fmt):
    data = tgz(('a', noise), mode=f'w:{fmt}')
    bad = {'junk':noise, 'zero':b'', 'half':data[:100_000], 'flipped':data[:50_000]+b'x'*10_000+data[60_000:], 'crc':data[:-6]+b'xxxxxx', 'empty':tgz(mode=f'w:{fmt}')}
    for k,o in bad.items():
        server.files[f'/{k}.tgz'] = o
        with pytest.raises((ValueError,ConnectionError), match='cannot be unpacked|nothing in it|could not be downloaded'): get(f'{server.url}/{k}.tgz')
    assert left(server)==([],[]) and list(cache_dir('data').iterdir())==[]

def test_cut_between_members(server, tmp_path):
    data = tgz(*[(k, noise[:512]) for k in 'abc'], mode='w')
    for n in (1024,2048,3072):
        (tmp_path/'cut.tar').write_bytes(data[:n])
        with pytest.raises(ValueError, match='its end is missing'): get(tmp_path/'cut.tar')
    (tmp_path/'cut.tar').write_bytes(data[:3072+512])
    assert names(get(tmp_path/'cut.tar'))==['a','b','c']

def test_zip_and_odd_archives(server, tmp_path):
    local = tmp_path/'zipped.zip'
    local.write_bytes(zipped(('z/1.txt', b'one'), ('2.txt', b'two')))
    p = get(local)
    assert (p.name,(p/'z/1.txt').read_text())==('zipped','one') and local.exists()
    assert get(local.as_uri(), dest=tmp_path/'by_uri')==tmp_path/'by_uri'
    tail = tmp_path/'ends.tar' # its last member is a zip, and so it ends like one
    tail.write_bytes(tgz(('a', b'one'), ('in.zip', zipped(('b', b'two'))), mode='w'))
    assert names(get(tail))==['a','in.zip']
    odd = tmp_path/(os.fsdecode(b'\xff\n.zip') if sys.platform=='linux' else 'o d.zip')
    odd.write_bytes(zipped(('a', b'1'), ('b', b'2')))
    assert [names(get(odd)) for _ in range(2)]==[['a','b']]*2
    locked = bytearray(zipped(('a', b'1')))
    for sign,at in ((b'PK\3\4',6),(b'PK\1\2',8)): locked[locked.index(sign)+at] |= 1
    (tmp_path/'locked.zip').write_bytes(locked)
    with pytest.raises(ValueError, match='encrypted'): get(tmp_path/'locked.zip')
    for o in (f'{server.url}/', server.url, ''):
        with pytest.raises(ValueError, match='does not end in the name'): get(o)
    with pytest.raises(FileNotFoundError, match='/no/such.tgz'): get('/no/such.tgz', dest=tmp_path/'new/folder')
    assert not (tmp_path/'new').exists()

def test_nothing_of_yours_is_touched(server, tmp_path):
    url,work = f'{server.url}/pics.tgz',tmp_path/'work'
    work.mkdir()
    (work/'thesis.txt').write_text('ten years')
    for force in (False,True):
        with pytest.raises(FileExistsError, match='work was not made by `untar_data`, and stays as it is'): get(url, dest=work, force_download=force)
    with pytest.raises(FileExistsError): get(url, dest=tmp_path) # a folder with all kinds of things
    (tmp_path/'file').write_text('1')
    with pytest.raises(NotADirectoryError): get(url, dest=tmp_path/'file')
    assert (names(work),(work/'thesis.txt').read_text(),(tmp_path/'file').read_text(),server.log)==(['thesis.txt'],'ten years','1',[])
    (empty := tmp_path/'empty').mkdir()
    assert names(get(url, dest=empty))==['a.txt','b.bin'] and (tmp_path/'empty/.untar_data').read_text()==url
    (empty/'model.safetensors').write_text('trained')
    server.files['/pics.tgz'] = tgz(('pics/new.txt', b'new'))
    assert names(get(url, dest=empty, force_download=True))==['new.txt']
    assert [names(o) for o in tmp_path.glob('empty.*')]==[['a.txt','b.bin','model.safetensors']]

def test_whose_folder(server, tmp_path):
    one,other = tmp_path/'same.zip',f'{server.url}/same.zip'
    one.write_bytes(zipped(('1', b'1')))
    server.files['/same.zip'] = zipped(('2', b'2'))
    p = get(one)
    assert get(one)==p
    with pytest.raises(ValueError, match='was made from .*same.zip .*, not from http'): get(other)
    assert names(get(other, force_download=True))==['2'] and server.log==[0]
    get(one, force_download=True)
    one.write_bytes(zipped(('3', b'three'))) # another archive of the same name
    with pytest.raises(ValueError, match='use `force_download`'): get(one)
    one.unlink()
    assert names(get(one))==['1'] # the archive may be removed
    (p/'.untar_data').unlink() # unpacked by hand, in the default place
    assert names(get(other))==['1']
    with pytest.raises(FileExistsError): get(other, force_download=True)

def test_full_disk_keeps_download(server):
    url = f'{server.url}/pics.tgz'
    with patch('tarfile.TarFile.extractall', side_effect=OSError(28, 'No space left on device')):
        with pytest.raises(OSError, match='was not unpacked: No space left'): get(url)
    assert left(server)==(['pics.tgz.part'],[])
    assert names(get(url))==['a.txt','b.bin'] and server.log==[0,len(server.files['/pics.tgz'])-1] and left(server)==([],[])

def test_several_at_once(server, tmp_path):
    def at_once(*kwargs):
        ts = [threading.Thread(target=get, args=[url], kwargs=o) for o in kwargs]
        for o in ts: o.start()
        for o in ts: o.join()
    url = f'{server.url}/pics.tgz'
    at_once(*[{}]*4)
    assert server.log==[0]
    at_once(*[dict(dest=tmp_path/f'to{i}') for i in range(4)])
    assert server.log==[0]*5 and all((tmp_path/f'to{i}/b.bin').read_bytes()==noise for i in range(4))

def fetch(url, home, stop=None):
    "`untar_data` in a program of its own, which may stop at a member"
    code = f'''
import time,sys
from scratchai import download
safe,n = download._safe,[]
def slow(*args):
    n.append(1)
    if len(n)=={stop}: print('stopped', flush=True), time.sleep(120)
    return safe(*args)
download._safe = slow
print(len(list(download.untar_data({url!r}, progress=False).iterdir()))-1, flush=True)
'''
    return subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ, SCRATCHAI_HOME=str(home)))

@pytest.mark.slow
def test_programs(server, tmp_path):
    "Ctrl-C in mid-download, two programs at once, Ctrl-C and SIGKILL while unpacking: nothing is half there, and the next call goes on"
    server.files['/many.tar'] = tgz(*[(f'many/{i}', noise[i:i+9000]) for i in range(50)], mode='w')
    url,part = f'{server.url}/many.tar',tmp_path/'a/archives/many.tar.part'
    server.go.clear()
    p = fetch(url, tmp_path/'a')
    until(lambda: server.log and part.exists())
    p.send_signal(signal.SIGINT)
    assert 'KeyboardInterrupt' in p.communicate(timeout=60)[0] and part.exists() and not (tmp_path/'a/data').exists()
    server.go.set()
    server.log.clear()
    n = part.stat().st_size
    assert fetch(url, tmp_path/'a').communicate(timeout=60)[0]=='50\n' and server.log==[max(n-1, 0)] and not part.exists()
    server.log.clear()
    assert [o.communicate(timeout=60)[0] for o in [fetch(url, tmp_path/'b') for _ in range(2)]]==['50\n']*2 and server.log==[0]
    for sig in (signal.SIGINT,signal.SIGKILL):
        home = tmp_path/sig.name
        p = fetch(url, home, stop=30)
        assert p.stdout.readline()=='stopped\n'
        p.send_signal(sig)
        p.communicate(timeout=60)
        assert [o.name for o in (home/'data').iterdir()]==['.many.many.tar.part.tmp'][:sig==signal.SIGKILL]
        assert fetch(url, home).communicate(timeout=60)[0]=='50\n' and [o.name for o in (home/'data').iterdir()]==['many']

@pytest.mark.slow
def test_small_disk(server, tmp_path):
    (disk := tmp_path/'disk').mkdir()
    if subprocess.run(['mount','-t','tmpfs','-o','size=100k','none',disk], capture_output=True).returncode: pytest.skip('no right to mount')
    try:
        out = fetch(f'{server.url}/pics.tgz', disk).communicate(timeout=60)[0].splitlines()[-1]
        assert 'No space left on device' in out and 'could not be downloaded' in out and not (disk/'data').exists(), out
        subprocess.run(['mount','-o','remount,size=300k',disk], check=True)
        out = fetch(f'{server.url}/pics.tgz', disk).communicate(timeout=60)[0].splitlines()[-1]
        assert 'was not unpacked: No space left on device' in out and list((disk/'data').iterdir())==[], out
        subprocess.run(['mount','-o','remount,size=1m',disk], check=True)
        assert fetch(f'{server.url}/pics.tgz', disk).communicate(timeout=60)[0]=='2\n'
    finally: subprocess.run(['umount',disk])
