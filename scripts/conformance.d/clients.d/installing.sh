# packages: python3 python3-pip python3-venv python3-setuptools npm
# pip install --target of a local wheel, a virtual environment, npm install of a local package. No network.
export PIP_NO_INDEX=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
python3 - <<'PY'
import base64, hashlib, zipfile
files = {
    "probe/__init__.py": "answer = 42\ndef main():\n    print(answer)\n",
    "probe/data/table.csv": "a,b\n" * 1000,
    "probe-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: probe\nVersion: 1.0\n",
    "probe-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: probe\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "probe-1.0.dist-info/entry_points.txt": "[console_scripts]\nprobe = probe:main\n",
}
for n in range(50):
    files[f"probe/m{n}.py"] = f"number = {n}\n"
record = "".join(
    f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}\n"
    for name, text in files.items()) + "probe-1.0.dist-info/RECORD,,\n"
with zipfile.ZipFile("probe-1.0-py3-none-any.whl", "w") as wheel:
    for name, text in (files | {"probe-1.0.dist-info/RECORD": record}).items():
        wheel.writestr(name, text)
PY
/usr/bin/python3 -m pip install -q --no-compile --target site ./probe-1.0-py3-none-any.whl
/usr/bin/python3 -m pip install -q --no-compile --upgrade --target site ./probe-1.0-py3-none-any.whl
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=site python3 -c 'import probe, probe.m7; print(probe.answer, probe.m7.number)'
/usr/bin/python3 -m venv --without-pip env
/usr/bin/python3 -m pip --python env/bin/python install -q ./probe-1.0-py3-none-any.whl
env/bin/probe && env/bin/probe
/usr/bin/python3 -m pip --python env/bin/python uninstall -q -y probe
rm -rf env probe*.whl site/probe*/{direct_url.json,RECORD}
mkdir package app
printf '{"name": "probe", "version": "1.0.0", "main": "index.js", "bin": "run.js"}\n' >package/package.json
printf 'module.exports = 42\n' >package/index.js
printf '#!/usr/bin/env node\nconsole.log(require("./index.js"))\n' >package/run.js
for n in $(seq 50); do echo "module.exports = $n" >package/m$n.js; done
export npm_config_cache=$PWD/npm-cache npm_config_offline=true npm_config_audit=false npm_config_fund=false npm_config_update_notifier=false npm_config_loglevel=error npm_config_logs_max=0
(cd package && npm pack --silent)
mv package/probe-1.0.0.tgz . && cd app
printf '{"name": "app", "version": "1.0.0"}\n' >package.json
npm install --silent ../probe-1.0.0.tgz && node -e 'console.log(require("probe"), require("probe/m7"))' && ./node_modules/.bin/probe
npm ci --silent && npm ls --depth=0 | tail -n +2 && npm uninstall --silent probe && cat package.json
cd .. && rm -rf npm-cache app/node_modules probe-1.0.0.tgz
