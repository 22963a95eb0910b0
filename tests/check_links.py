"Links between chapters, the README and the other pages: each leads to a file, and each anchor to a heading that exist."
import json,re,sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent

def text(file):
    "The Markdown of a page or notebook, without its code"
    if file.suffix=='.ipynb':
        cells = json.loads(file.read_text(encoding='utf-8'))['cells']
        res = '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type']=='markdown')
    else: res = file.read_text(encoding='utf-8')
    return re.sub(r'`[^`\n]*`', '', re.sub(r'```.*?```', '', res, flags=re.S))

def anchors(file): return {h.strip().replace(' ', '-') for h in re.findall(r'(?m)^#+ (.*)$', text(file))}

def bad_links(file):
    "The links of `file` that lead nowhere"
    for link in re.findall(r'(?:\]\(|src="|href=")([^)"\s]+)', text(file)):
        path,_,anchor = link.partition('#')
        if re.match(r'[a-z]+:', link): continue
        to = file.parent/path if path else file
        if not to.exists() or anchor and anchor not in anchors(to): yield f'{file.relative_to(root)}: {link}'

if __name__=='__main__':
    files = [*root.glob('nbs/*.ipynb'), *root.glob('*.md'), root/'benchmarks/RESULTS.md']
    if bad := [o for f in sorted(files) for o in bad_links(f)]: sys.exit('Links that lead nowhere:\n'+'\n'.join(bad))
