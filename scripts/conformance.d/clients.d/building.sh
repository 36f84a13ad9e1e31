# packages: gcc libc6-dev make binutils ccache
# gcc, ld, ar, strip, objcopy, make (twice, and after a change), ccache, a shared library.
mkdir proj && cd proj
printf '#include <stdio.h>\nint twice(int);\nint main(void){printf("%%d\\n",twice(21));return 0;}\n' >main.c
printf 'int twice(int n){return 2*n;}\n' >twice.c
cat >Makefile <<'MAKE'
CFLAGS = -g -O1
prog: main.o libtwice.a ; $(CC) -o $@ main.o -L. -ltwice
libtwice.a: twice.o ; ar rcs $@ $^ && ranlib $@
shared: main.o twice.c ; $(CC) -shared -fPIC -o libs.so twice.c && $(CC) -o $@ main.o -L. -ls -Wl,-rpath,'$$ORIGIN'
%.o: %.c ; $(CC) $(CFLAGS) -c -o $@ $<
MAKE
make -s -j2 prog && ./prog
make prog
printf 'int twice(int n){return 2*n+1;}\n' >twice.c
make -s prog && ./prog && make -q prog && echo fresh
make -s shared && ./shared
cp prog p2 && strip p2 && ./p2
objcopy --only-keep-debug prog prog.debug && objcopy --strip-debug --add-gnu-debuglink=prog.debug prog p3 && ./p3
ld -r -o both.o main.o twice.o && gcc -o p4 both.o && ./p4
gcc -flto -O2 -o p5 main.c twice.c && ./p5
gcc -save-temps -c twice.c && ls twice.*
export CCACHE_DIR=$PWD/cc CCACHE_COMPILERCHECK=none
ccache gcc -c main.c -o one.o && ccache gcc -c main.c -o two.o && cmp one.o two.o
ccache -s --format json 2>/dev/null | grep -c cache || ccache --print-stats | grep -E '^(direct_cache_hit|cache_miss)'
# What a running program's file does: it can be replaced, and not written.
cp "$(command -v sleep)" own-sleep && chmod 755 own-sleep
./own-sleep 60 & own=$!
until [ "$(readlink "/proc/$own/exe")" = "$PWD/own-sleep" ]; do command sleep 0.01; done
cp --remove-destination prog own-sleep && ./own-sleep
kill $own && wait $own || true
cd .. && rm -rf proj/cc proj/*.o proj/*.a proj/*.ltrans* proj/p? proj/own-sleep proj/prog* proj/shared proj/libs.so proj/twice.[!c]* 
