"Pictures from addresses and made small: failures are listed, files are whole, nothing is fetched or saved twice"
import io,threading,warnings
from http.server import BaseHTTPRequestHandler,ThreadingHTTPServer

import numpy as np,pytest
from PIL import Image
from fastcore.all import L,Path
from scratchai.collect import *
from scratchai.files import get_image_files,open_image

def jpeg(size=(40,30), fmt='JPEG', **kwargs):
    Image.effect_noise(size, 60).convert('RGB').save(f := io.BytesIO(), fmt, **kwargs)
    return f.getvalue()
def saved(path, size=(40,30), mode='RGB', **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 60).convert(mode).save(path, **kwargs)
    return path
def names(p): return sorted(o.name for o in Path(p).iterdir())

class Server(BaseHTTPRequestHandler):
    log_message = lambda self, *args: None
    def do_GET(self):
        s = self.server
        s.log.append(self.path)
        if 'slow' in self.path: s.stop.wait(30)
        data = s.files.get(self.path)
        if data is None: return self.send_error(404)
        self.send_response(200)
        self.send_header('Content-Length', len(data)+self.path.startswith('/cut'))
        self.end_headers()
        self.wfile.write(data)

@pytest.fixture
def server():
    s = ThreadingHTTPServer(('127.0.0.1', 0), Server)
    s.files,s.log,s.stop = {f'/{o}':jpeg() for o in ('a.jpg','b.png?size=2','page','x/a.jpg','c.php','cut.jpg')},[],threading.Event()
    s.url = f'http://127.0.0.1:{s.server_port}'
    threading.Thread(target=s.serve_forever, args=(.02,), daemon=True).start()
    yield s
    s.stop.set()
    s.shutdown()
    s.server_close()

# download_images
def test_what_fails_is_listed(server, tmp_path):
    urls = [f'{server.url}/{o}' for o in ('a.jpg','b.png?size=2','page','x/a.jpg','c.php','none.jpg','cut.jpg')]+['http://[bad', 'nonsense']
    with pytest.warns(UserWarning, match=r'4 of 9 pictures were not downloaded, the first: .*none.jpg could not be downloaded \(HTTP Error 404'):
        bad = download_images(tmp_path/'new/pics', urls=urls)
    assert isinstance(bad, L) and bad.itemgot(0)==urls[5:] and 'cut' in bad[1][1]
    assert len(get_image_files(tmp_path/'new/pics'))==5==len(names(tmp_path/'new/pics')) and verify_images(tmp_path/'new/pics', n_workers=0)==[]
    assert sorted(o.suffix for o in get_image_files(tmp_path/'new/pics'))==['.jpg']*4+['.png']

def test_a_second_call_gets_what_is_missing(server, tmp_path):
    urls = [f'{server.url}/{o}' for o in ('a.jpg','late.jpg')]
    with pytest.warns(UserWarning, match='1 of 2 pictures'): download_images(tmp_path, urls=urls)
    server.files['/late.jpg'] = jpeg()
    server.log.clear()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert download_images(tmp_path, urls=urls)==[]
    assert server.log==['/late.jpg'] and len(names(tmp_path))==2

def test_addresses_in_a_file(server, tmp_path):
    (tmp_path/'urls.txt').write_text(f'{server.url}/a.jpg\n\n  {server.url}/x/a.jpg \r\n{server.url}/a.jpg\n{server.url}/page\n')
    assert download_images(tmp_path/'all', tmp_path/'urls.txt')==[] and len(names(tmp_path/'all'))==3
    server.log.clear()
    assert download_images(tmp_path/'two', str(tmp_path/'urls.txt'), max_pics=2, n_workers=1)==[] and server.log==['/a.jpg','/x/a.jpg']
    with pytest.raises(ValueError, match='No addresses: pass `urls`, or `url_file`'): download_images(tmp_path/'none')
    assert download_images(tmp_path/'empty', urls=[])==[] and not (tmp_path/'none').exists()

def test_names_of_the_addresses(server, tmp_path):
    server.files |= {'/cat%201.jpg':jpeg(), '/'+'n'*300+'.jpg':jpeg(), '/%2e%2e%2fup.jpg':jpeg()}
    urls = [server.url+o for o in ('/a.jpg','/x/a.jpg','/b.png?size=2','/cat%201.jpg','/'+'n'*300+'.jpg','/%2e%2e%2fup.jpg')]
    assert download_images(tmp_path/'pics', urls=urls, preserve_filename=True)==[]
    assert names(tmp_path/'pics')==sorted(['a.jpg','a1.jpg','b.png','cat 1.jpg','n'*60+'.jpg','up.jpg']) and names(tmp_path)==['pics']
    download_images(tmp_path/'pics', urls=urls[:1], preserve_filename=True)
    assert 'a2.jpg' in names(tmp_path/'pics')

def test_a_server_that_does_not_answer(server, tmp_path):
    with pytest.warns(UserWarning, match='timed out'): bad = download_images(tmp_path, urls=[f'{server.url}/slow.jpg',f'{server.url}/a.jpg'], timeout=.2)
    assert bad.itemgot(0)==[f'{server.url}/slow.jpg'] and len(names(tmp_path))==1

# resize_image
def test_sizes(tmp_path):
    saved(tmp_path/'a.jpg', (400,300))
    to = resize_image('a.jpg', tmp_path/'new', tmp_path, max_size=100)
    assert to==tmp_path/'new/a.jpg' and Image.open(to).size==(100,75) and names(tmp_path/'new')==['a.jpg']
    assert Image.open(resize_image('a.jpg', tmp_path/'one', tmp_path)).size==(400,300)
    assert (tmp_path/'one/a.jpg').read_bytes()==(tmp_path/'a.jpg').read_bytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    saved(tmp_path/'turned.jpg', (400,200), exif=exif)
    assert Image.open(resize_image(tmp_path/'turned.jpg', tmp_path/'new', max_size=100)).size==(50,100)

def test_what_is_small_is_not_saved_again(tmp_path):
    p = saved(tmp_path/'a/b.jpg', (80,60))
    was = p.read_bytes(),p.stat().st_mtime_ns
    assert resize_image('a/b.jpg', tmp_path, tmp_path, max_size=80)==p and (p.read_bytes(),p.stat().st_mtime_ns)==was
    assert resize_image('a/b.jpg', tmp_path/'new', tmp_path, max_size=80).read_bytes()==was[0]
    assert Image.open(resize_image('a/b.jpg', tmp_path, tmp_path, max_size=40)).size==(40,30)

def test_forms(tmp_path):
    saved(tmp_path/'a.jpg', (80,60)), saved(tmp_path/'grey.jpg', (80,60), 'L'), saved(tmp_path/'clear.png', (80,60), 'RGBA')
    def new(o, **kwargs): return Image.open(resize_image(o, tmp_path/'new', tmp_path, **kwargs))
    assert (new('a.jpg', ext='.png').format,names(tmp_path/'new'))==('PNG',['a.png'])
    assert new('a.jpg', img_format='BMP', max_size=40).format=='BMP' and new('a.jpg', n_channels=1).mode=='L'
    assert new('grey.jpg').mode==new('clear.png').mode=='RGB' and new('grey.jpg', n_channels=1).mode=='L'
    small,smaller = (resize_image('a.jpg', tmp_path/'new', tmp_path, max_size=70, quality=q).stat().st_size for q in (90,10))
    assert smaller<small
    a,b = (np.array(new('a.jpg', max_size=30, resample=o)) for o in (Image.NEAREST,Image.BILINEAR))
    assert not np.array_equal(a, b)

def test_one_that_is_there(tmp_path):
    saved(tmp_path/'a.jpg', (80,60))
    (tmp_path/'new').mkdir()
    (tmp_path/'new/a.jpg').write_text('mine')
    assert resize_image('a.jpg', tmp_path/'new', tmp_path, max_size=40, resume=True).read_text()=='mine'
    assert Image.open(resize_image('a.jpg', tmp_path/'new', tmp_path, max_size=40)).size==(40,30)

def test_one_that_is_no_picture(tmp_path):
    (tmp_path/'a.jpg').write_text('page')
    (tmp_path/'half.jpg').write_bytes(jpeg((200,200))[:3000])
    for o in ('a.jpg','half.jpg','none.jpg'):
        with pytest.raises(OSError, match=f'{o} cannot be resized: '): resize_image(o, tmp_path/'new', tmp_path, max_size=20)
    assert not (tmp_path/'new').exists()

# resize_images
def test_a_folder(tmp_path):
    for i in range(3): saved(tmp_path/f'pics/{i}.jpg', (80,60))
    saved(tmp_path/'pics/sub/3.jpg', (80,60))
    (tmp_path/'pics/2.jpg').write_text('page')
    with pytest.warns(UserWarning, match=r'1 of 3 pictures were not resized, the first: .*2.jpg cannot be resized'): bad = resize_images(tmp_path/'pics', max_size=40, dest=tmp_path/'new')
    assert bad.itemgot(0)==[Path('2.jpg')] and names(tmp_path/'new')==['0.jpg','1.jpg']
    (tmp_path/'pics/2.jpg').unlink()
    assert resize_images(tmp_path/'pics', max_workers=1, max_size=40, recurse=True, dest=tmp_path/'all', quality=50)==[]
    assert names(tmp_path/'all/sub')==['3.jpg'] and {open_image(o).size for o in get_image_files(tmp_path/'all')}=={(40,30)}
    assert resize_images(tmp_path/'pics', max_size=40, recurse=True, dest=tmp_path/'pics')==[] # in place
    assert {open_image(o).size for o in get_image_files(tmp_path/'pics')}=={(40,30)}

def test_into_the_current_folder(tmp_path, monkeypatch):
    saved(tmp_path/'pics/0.jpg', (80,60))
    monkeypatch.chdir(tmp_path)
    assert resize_images('pics', max_size=40)==[] and names(tmp_path)==['0.jpg','pics']
