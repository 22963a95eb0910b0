"README.md from nbs/index.ipynb: `--write` writes it, otherwise the exit status says whether they agree."
import re,sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parent.parent

def readme()->str:
    "The README's text: the notebook without its hidden cells and directives, links made relative to the root"
    nb = nbformat.read(root/'nbs/index.ipynb', 4)
    nb.metadata['language_info'] = {'name': 'python'}
    nb.cells = [c for c in nb.cells if not re.match(r'#\|\s*(hide|default_exp)\b', c.source)]
    for c in nb.cells: c.source = re.sub(r'(?m)^#\|.*\n', '', c.source)
    text = MarkdownExporter().from_notebook_node(nb)[0]
    text = re.sub(r'(\]\(|src=")(?=images/|\w+\.ipynb)', r'\1nbs/', text)
    text = text.replace('](../', '](')
    return '<!-- Made from nbs/index.ipynb by `make readme`. -->\n\n'+re.sub(r'\n{3,}', '\n\n', text).strip()+'\n'

if __name__=='__main__':
    file,text = root/'README.md',readme()
    if '--write' in sys.argv: file.write_text(text, encoding='utf-8')
    elif file.read_text(encoding='utf-8')!=text: sys.exit('README.md is not what nbs/index.ipynb says: run `make readme`.')
