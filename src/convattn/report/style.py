"""The frame and the looks of the report: one page that loads nothing, in the reader's own light or dark theme."""

from string import Template

CSS = """
:root{--paper:#f6f7f9;--card:#fff;--ink:#16202c;--muted:#5b6775;--line:#dfe4ea;--c1:#2563eb;--c2:#d9480f;
--hit:37 99 235;--miss:217 72 15;--good:#16794a;--warn:#9a5b00;--code:#f0f2f5;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--paper:#0e131a;--card:#171e27;--ink:#e7ecf2;--muted:#9aa7b6;--line:#2b3643;
--c1:#6ea8fe;--c2:#ff8a4c;--hit:80 140 250;--miss:240 110 50;--good:#5bd197;--warn:#f0b952;--code:#0e131a}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1120px;margin:0 auto;padding:28px 20px 48px}
h1{font-size:1.65rem;line-height:1.2;margin:0;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:0 0 4px;letter-spacing:-.005em}
p{margin:0 0 10px}.intro,figcaption p,.sub{color:var(--muted);max-width:72ch}
section,header{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:20px 22px;margin:0 0 18px}
.title{display:flex;flex-wrap:wrap;gap:6px 14px;align-items:center;justify-content:space-between}
.badge{border-radius:99px;padding:2px 12px;font-size:.85rem;font-weight:600;border:1.5px solid currentColor}
.badge.good,.good{color:var(--good)}.badge.warn{color:var(--warn)}
.sub{margin:4px 0 16px;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(110px,1fr));gap:10px;margin:0}
.tiles div{background:var(--paper);border-radius:10px;padding:10px 14px}
.tiles dt{color:var(--muted);font-size:.82rem}.tiles dd{margin:0;font-size:1.18rem;font-weight:600;line-height:1.3}
.tiles dd{overflow-wrap:anywhere}
.tiles .main{grid-column:span 2}.tiles .main dd{font-size:2.3rem;line-height:1.1;color:var(--c1)}
.tiles small{display:block;font-weight:400;line-height:1.5;color:var(--muted);font-size:.8rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));gap:22px}
@media(min-width:820px){.charts.two{grid-template-columns:repeat(2,minmax(0,1fr))}}
.charts.two svg{max-width:430px}
figure{margin:12px 0 0;min-width:0}.charts figure{display:flex;flex-direction:column;justify-content:space-between}
figcaption{margin-bottom:6px}figcaption b{font-weight:600}
figcaption p{font-size:.88rem;margin:0}svg{display:block;width:100%;height:auto;max-width:620px}
svg text{font-family:inherit}
.split{display:grid;grid-template-columns:minmax(0,3fr) minmax(0,2fr);gap:28px}
@media(max-width:820px){.split{grid-template-columns:minmax(0,1fr)}}
.scroll{overflow-x:auto;max-width:100%}.scroll:focus-visible{outline:2px solid var(--c1);outline-offset:2px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
.plain{width:100%;font-size:.9rem}.plain th,.plain td{text-align:left;padding:5px 12px 5px 0;
border-bottom:1px solid var(--line);vertical-align:top}.plain th{color:var(--muted);font-weight:500;white-space:nowrap}
.plain td{overflow-wrap:break-word}
.matrix{font-size:.82rem}.matrix td{min-width:var(--cell);height:var(--cell);text-align:center;padding:0 3px;
border:1px solid var(--line)}.matrix thead td{border:0;height:auto}
.matrix th{font-weight:500;color:var(--muted);padding:2px 6px}
.matrix th span{display:block;max-width:11em;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.matrix thead th{vertical-align:bottom}
.matrix.tall thead span{writing-mode:vertical-rl;transform:rotate(180deg);max-height:9em;margin:0 auto}
.matrix tbody th{text-align:right;position:sticky;left:0;background:var(--card)}
.matrix .hit{background:rgb(var(--hit)/var(--a))}.matrix .miss{background:rgb(var(--miss)/var(--a))}
.matrix .strong{color:#fff}
.matrix-picture{width:100%;max-width:640px;image-rendering:pixelated;border:1px solid var(--line);display:block}
ul{list-style:none;padding:0;margin:0}
.bars{columns:2;column-gap:36px}@media(max-width:820px){.bars{columns:1}}
.bars li{display:grid;grid-template-columns:min(var(--name),38%) 1fr 9.2em;gap:12px;align-items:center;padding:4px 0;
break-inside:avoid}.bars .name{overflow-wrap:anywhere;line-height:1.25}
.bars .track{background:var(--line);border-radius:99px;height:9px;overflow:hidden}
.bars .track span{display:block;height:100%;background:var(--c1);border-radius:99px}
.bars.long li{grid-template-columns:min(var(--name),30%) 1fr 15.6em}
.bars .value{font-variant-numeric:tabular-nums;white-space:nowrap}small{color:var(--muted);font-size:.82em}
@media(max-width:480px){.bars li{grid-template-columns:min(var(--name),34%) 1fr 8.4em;gap:8px}
.bars.long li{grid-template-columns:min(var(--name),30%) 1fr 10.8em}.bars.long .value{white-space:normal}
.bars.long small{display:block}}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(118px,1fr));gap:14px;margin-top:12px}
.gallery li{min-width:0;font-size:.92rem;line-height:1.35}
.gallery img,.gallery .lost{width:100%;aspect-ratio:1;object-fit:contain;background:var(--paper);border-radius:8px;
display:block;margin-bottom:6px}
.gallery .lost,.shots .lost{display:grid;place-items:center;color:var(--muted);background:var(--paper)}
.keys{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:.88rem;color:var(--muted);margin-top:8px}
.keys li{display:flex;align-items:center;gap:7px;overflow-wrap:anywhere;min-width:0}
.key{flex:none;width:26px;height:16px;border-radius:3px;background-clip:padding-box}
.bare{border:1.5px dashed var(--muted)}
.hatched{background-image:repeating-linear-gradient(-45deg,#0000 0 3px,#0007 3px 6px)}
.pairs,.rows{display:grid;gap:24px 26px;margin-top:14px;grid-template-columns:minmax(0,1fr)}
.pairs li,.rows li{min-width:0;line-height:1.4}.rows li,.pairs li{break-inside:avoid}
.shots{display:grid;grid-template-columns:1fr 1fr;gap:8px}.shots>div{min-width:0}
.shots img,.shots .lost{width:100%;border-radius:6px;display:block;margin:0}
.shots img{max-height:460px;object-fit:contain}.shots.wide{grid-template-columns:1fr}.shots .lost{aspect-ratio:4/3}
.shots small{display:block}.pairs .said,.rows .said{overflow-wrap:anywhere}
.file{color:var(--muted);font-size:.78rem;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
@media(min-width:820px){.pairs{grid-template-columns:repeat(2,minmax(0,1fr))}.four{grid-template-columns:repeat(4,1fr)}}
@media(max-width:480px){.pairs .shots{grid-template-columns:1fr}}
.pixels{image-rendering:pixelated}
.gallery div{overflow-wrap:anywhere}.said{color:var(--c2);font-weight:600}.said.good{color:var(--good)}
.said small{font-weight:400}
.gallery .file{color:var(--muted);font-size:.78rem;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
pre{background:var(--code);border:1px solid var(--line);border-radius:10px;padding:12px 14px;overflow-x:auto;
margin:4px 0 14px;font:.86rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
details{margin-top:12px}summary{cursor:pointer;color:var(--c1);font-weight:500}details>*+*{margin-top:10px}
summary:focus-visible{outline:2px solid var(--c1);outline-offset:2px}
footer{color:var(--muted);font-size:.85rem;text-align:center}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
@media(max-width:480px){.gallery{grid-template-columns:repeat(3,1fr);gap:12px 10px}.gallery li{font-size:.82rem}
.matrix{--cell:28px!important}.matrix th span{max-width:6.5em}
main{padding:12px 10px 32px}
.tiles{grid-template-columns:repeat(3,1fr);gap:8px}.tiles div{padding:8px 10px}
.tiles .main{grid-column:1/-1}.tiles dd{font-size:1.05rem}
section,header{padding:16px 14px;border-radius:12px}}
@media print{body{background:#fff}section,header{border:0;break-inside:avoid-page}}
"""

# The policy has the browser itself refuse anything that is not inside the page.
PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>$title</title>
<style>$css</style>
</head>
<body>
<main>
$body
<footer>written by convattn $version</footer>
</main>
</body>
</html>
""")
