"""The page of the report; a string, so that it travels wherever the code does."""

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; margin: 0; }
body { color: #1f2937; background: #f8fafc; }
main { max-width: 980px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 0 0 .75rem; }
p.lead { color: #6b7280; margin: 0 0 1.5rem; }
section { padding: 1.25rem 1.5rem; margin: 0 0 1.25rem; }
section { background: #fff; border: 1px solid #e5e7eb; border-radius: 10px; }
.scroll { overflow: auto; max-height: 30rem; }
table { border-collapse: collapse; width: 100%; }
th { color: #6b7280; font-weight: 600; font-size: .85rem; }
th, td { text-align: left; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid #f1f5f9; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre, code { font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { margin: 0; white-space: pre-wrap; }
svg, img { max-width: 100%; height: auto; display: block; margin: 0 auto .75rem; }
"""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<main>
{%- macro grid(header, rows, words) %}
<div class="scroll"><table>
<thead><tr>
{%- for cell in header %}<th{% if loop.index0 not in words %} class="number"{% endif %}>{{ cell }}</th>{% endfor -%}
</tr></thead>
<tbody>
{%- for row in rows %}
<tr>{% for cell in row %}<td{% if loop.index0 not in words %} class="number"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody>
</table></div>
{%- endmacro %}
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>

<section><h2>Scores</h2>
{{ grid(["score", "untrained", "final", "difference"], scores, [0]) }}
</section>

<section><h2>Cost</h2>
{{ grid(["", ""], costs, [0]) }}
</section>

<section><h2>Privacy</h2>
{% for guarantee in privacy %}{{ grid(["guarantee", "value"], guarantee, [0]) }}
{% else %}<p>guarantee: none</p>{% endfor %}
{% if protection %}<p>protection, empirical: {{ protection }}</p>{% endif %}
</section>

{% if curves %}<section><h2>Curves</h2>
{% for curve in curves %}{{ curve }}{% endfor %}
</section>{% endif %}

{% if neighbours %}<section><h2>Nearest neighbours</h2>
<p>The first test videos of each class by name, and the training videos whose features are nearest by cosine. Of each
video the middle frame of every third is shown. A few videos illustrate; the scores count all of them.</p>
<img src="data:image/png;base64,{{ neighbours }}" alt="test videos and the training videos nearest to each">
</section>{% endif %}

{% if partition %}<section><h2>Partition</h2>
{% if shared %}<p>{{ shared }}</p>{% endif %}
{{ partition }}
</section>{% endif %}

<section><h2>Rounds</h2>
{{ grid(round_header, rounds, []) }}
</section>

<section><h2>Failed and absent clients</h2>
{% if failures %}{{ grid(["round", "partition", "reason"], failures, [0, 1, 2]) }}
{% else %}<p>No client failed or was absent.</p>{% endif %}
</section>

<section><h2>Configuration</h2>
<pre>{{ config_yaml }}</pre>
</section>

<section><h2>Versions</h2>
{{ grid(["", ""], versions, [0, 1]) }}
<p>model sha256 <code>{{ model_sha256 }}</code></p>
</section>
</main>
</body>
</html>
"""
