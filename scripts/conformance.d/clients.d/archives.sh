# packages: zip unzip dpkg
# zip and unzip, dpkg-deb, ar.
zip -qry a.zip src f -x src/pipe -x src/null && zip -qu a.zip f && zip -qd a.zip f && zip -q -g a.zip f
zip -qT a.zip && unzip -tq a.zip
mkdir x && unzip -q a.zip -d x && unzip -qo a.zip -d x && unzip -qfo a.zip -d x
zip -qm moved.zip src/run && unzip -l moved.zip | tail -1 && rm a.zip moved.zip
mkdir -p pkg/DEBIAN pkg/usr/bin
printf 'Package: probe\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: probe\n' >pkg/DEBIAN/control
cp -p f pkg/usr/bin/probe && ln -s probe pkg/usr/bin/link
dpkg-deb -b --root-owner-group -Zgzip pkg probe.deb >/dev/null
dpkg-deb -c probe.deb | wc -l && dpkg-deb -x probe.deb y && dpkg-deb -e probe.deb y/control && dpkg-deb -f probe.deb Package
dpkg-deb -R probe.deb raw && rm probe.deb
ar rcD lib.a f src/long && ar rD lib.a src/empty && ar dD lib.a f && ar tv lib.a && ar p lib.a long | wc -l
