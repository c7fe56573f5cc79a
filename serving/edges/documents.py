"""What /docs and /openapi.json serve."""

from collections.abc import Mapping

import msgspec

from burrstone.serving.api.openapi import document
from burrstone.serving.config import ServeConfig

_DOCS = b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>burrstone API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c1c1c}
h1{margin-bottom:0}code,pre{font:14px ui-monospace,monospace}summary{cursor:pointer;padding:.4rem 0}
.m{display:inline-block;width:4.5rem;font-weight:600}.POST{color:#0a6}.GET{color:#06c}.DELETE{color:#c30}
table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ddd;text-align:left;padding:.3rem .6rem;vertical-align:top}
@media(prefers-color-scheme:dark){body{background:#161616;color:#e4e4e4}td,th{border-color:#333}}
</style></head><body><h1>burrstone API</h1><p id="intro">Loading <a href="/openapi.json">/openapi.json</a>...</p><main id="ops"></main>
<script>
const text=(tag,value,cls)=>{const e=document.createElement(tag);e.textContent=value;if(cls)e.className=cls;return e};
fetch("/openapi.json").then(r=>r.json()).then(doc=>{
  const intro=document.getElementById("intro");intro.textContent=doc.info.description+" ";
  const link=text("a","OpenAPI document");link.href="/openapi.json";intro.append(link);
  const main=document.getElementById("ops");
  for(const [path,methods] of Object.entries(doc.paths))for(const [method,op] of Object.entries(methods)){
    const d=document.createElement("details"),s=document.createElement("summary");
    s.append(text("span",method.toUpperCase(),"m "+method.toUpperCase()),text("code",path)," ",op.summary);d.append(s);
    const ref=op.requestBody?.content["application/json"]?.schema?.$ref;
    if(ref){const schema=doc.components.schemas[ref.split("/").pop()],table=document.createElement("table");
      const head=document.createElement("tr");for(const h of ["field","type","rule"])head.append(text("th",h));table.append(head);
      for(const [name,p] of Object.entries(schema.properties)){const row=document.createElement("tr");
        const required=(schema.required||[]).includes(name)?"required":"";
        const kinds=(p.anyOf||p.oneOf||[p]).map(k=>k.$ref?k.$ref.split("/").pop():k.enum?k.enum.map(v=>JSON.stringify(v)).join(" | "):k.type||k.const||"value").filter(k=>k!=="null");
        row.append(text("td",name),text("td",[...new Set(kinds)].join(" | ")),text("td",required));table.append(row)}
      d.append(table)}
    const example=op.requestBody?.content["application/json"]?.example;
    if(example)d.append(text("pre","curl "+location.origin+path+" -H 'Content-Type: application/json' \\\\\\n  -d '"+JSON.stringify(example)+"'"));
    main.append(d)}});
</script></body></html>
"""


def documents(config: ServeConfig) -> Mapping[str, tuple[str, bytes]]:
    """Path -> (content type, body); empty when http.docs is off."""
    if not config.http.docs:
        return {}
    return {
        "/openapi.json": ("application/json", msgspec.json.encode(document())),
        "/docs": ("text/html; charset=utf-8", _DOCS),
    }
