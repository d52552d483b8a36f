package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/tartarus-sandbox/tartarus/internal/image/tiny"
)

// bin is a folder with the program under all its names, as in the template.
var bin string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "tiny")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "tartarus-tiny")
	build := exec.Command("go", "build", "-o", program, ".")
	if runtime.GOARCH == "amd64" {
		build.Args = append(build.Args[:2:2], "-ldflags", "-E main.entry", "-o", program, ".")
	}
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	for _, name := range tiny.Applets {
		if err := os.Symlink("tartarus-tiny", filepath.Join(dir, name)); err != nil {
			panic(err)
		}
	}
	bin = dir
	return m.Run()
}

// command runs a program of ours with nothing else in its PATH.
func command(t testing.TB, dir string, argv ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, filepath.Join(bin, argv[0]), argv[1:]...)
	cmd.Args[0] = argv[0]
	cmd.Dir = dir
	cmd.WaitDelay = time.Second
	cmd.Env = []string{"PATH=" + bin, "HOME=" + dir, "LANG=C.UTF-8", "TZ=UTC"}
	return cmd
}

func sh(t testing.TB, dir, script string, args ...string) (string, int) {
	t.Helper()
	cmd := command(t, dir, append([]string{"sh", "-c", script}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	code := cmd.ProcessState.ExitCode()
	if code < 0 {
		code = 128 + int(cmd.ProcessState.Sys().(syscall.WaitStatus).Signal())
	}
	return out.String(), code
}

func TestListIsTrue(t *testing.T) {
	out, err := command(t, t.TempDir(), "tartarus-tiny", "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	have, want := strings.Fields(string(out)), slices.Sorted(slices.Values(tiny.Applets))
	if !slices.Equal(have, want) {
		t.Errorf("the program has %v, the template %v", have, want)
	}
	out, err = command(t, t.TempDir(), "tartarus-tiny", "echo", "by", "argument").Output()
	if err != nil || string(out) != "by argument\n" {
		t.Errorf("%q, %v", out, err)
	}
	if err := command(t, t.TempDir(), "tartarus-tiny", "nosuch").Run(); err == nil {
		t.Error("an unknown applet ran")
	}
}

type smoke struct {
	script string
	want   string // the whole output; a leading ~ means that it is somewhere in it
	code   int
}

func (c smoke) run(t *testing.T, dir string) {
	t.Helper()
	out, code := sh(t, dir, c.script)
	ok := out == c.want
	if rest, found := strings.CutPrefix(c.want, "~"); found {
		ok = strings.Contains(out, rest)
	}
	if !ok || code != c.code {
		t.Errorf("%s\n got %q, exit code %d\nwant %q, exit code %d", c.script, out, code, c.want, c.code)
	}
}

// TestApplets runs every applet at least once.
func TestApplets(t *testing.T) {
	all := map[string][]smoke{
		"[":         {{"[ 1 -lt 2 ] && \\[ -n x ]", "", 0}, {bin + "/[ a = b ]", "", 1}},
		"ash":       {{"ash -c 'echo hi'", "hi\n", 0}},
		"base64":    {{"echo hello | base64", "aGVsbG8K\n", 0}, {"echo aGVsbG8K | base64 -d", "hello\n", 0}},
		"basename":  {{"basename /a/b.txt .txt; basename /a/", "b\na\n", 0}},
		"bash":      {{"bash -c 'a=(1 2); echo ${#a[@]}'", "2\n", 0}},
		"cat":       {{"echo x > f; cat f - < f", "x\nx\n", 0}, {"cat nosuch", "~no such file", 1}},
		"chgrp":     {{"touch f; chgrp $(id -g) f", "", 0}},
		"chmod":     {{"touch f; chmod 4750 f; stat -c %a f; chmod u-s,g+w,o=r f; stat -c %a f; chmod -x f; chmod +x f; stat -c %A f", "4750\n774\n-rwxrwxr-x\n", 0}},
		"chown":     {{"touch f; chown $(id -u):$(id -g) f && stat -c %u f | grep -qx $(id -u)", "", 0}, {"touch f; chown nobody-here f", "~no such user", 1}},
		"clear":     {{"clear | wc -c", "11\n", 0}},
		"cp":        {{"mkdir -p d; echo x > d/f; cp -r d e; cat e/f", "x\n", 0}},
		"cut":       {{"echo a:b:c | cut -d: -f2-", "b:c\n", 0}, {"echo abcdef | cut -c 1,3-4", "acd\n", 0}},
		"date":      {{"date -u -d @86400 +%Y-%m-%dT%H:%M:%S", "1970-01-02T00:00:00\n", 0}, {"date -u -d '2026-02-03 04:05:06' +%s", "1770091506\n", 0}},
		"dd":        {{"dd if=/dev/zero of=f bs=1K count=3 status=none; wc -c < f; echo abcdef | dd bs=1 skip=2 count=2 status=none", "3072\ncd", 0}},
		"df":        {{"df -h / | head -n 1", "~Mounted on\n", 0}},
		"dirname":   {{"dirname /a/b c /", "/a\n.\n/\n", 0}},
		"du":        {{"mkdir -p q; dd if=/dev/zero of=q/f bs=1M count=1 status=none; du -sb q | cut -f2", "q\n", 0}},
		"echo":      {{bin + "/echo -n a b", "a b", 0}},
		"egrep":     {{"printf 'aa\\nb\\n' | egrep 'a{2}|c'", "aa\n", 0}},
		"env":       {{"env -i A=1 env", "A=1\n", 0}, {"env nosuch", "~nosuch", 127}},
		"false":     {{bin + "/false", "", 1}},
		"fgrep":     {{"echo a.b | fgrep -c .", "1\n", 0}},
		"find":      {{"mkdir -p t/u; touch t/a.c t/u/b.c t/d.h; find t -name '*.c' | sort; find t -type d ! -name t; find t -maxdepth 1 -name '*.h' -exec echo got {} \\;; find t -name '*.c' -delete; find t -type f", "t/a.c\nt/u/b.c\nt/u\ngot t/d.h\nt/d.h\n", 0}},
		"free":      {{"free -m", "~Mem:", 0}},
		"grep":      {{"printf 'one\\ntwo\\nthree\\n' > f; grep -n t f; grep -v o f; grep -c e f; grep -io 'T.' f; grep -q nosuch f", "2:two\n3:three\nthree\n2\ntw\nth\n", 1}, {"printf 'a(b\\nab\\n' | grep 'a(b'; printf 'aab\\n' | grep 'a\\{2\\}'", "a(b\naab\n", 0}, {"mkdir -p g/h; echo hit > g/h/x; grep -r hit g; printf '1\\n2\\n3\\n4\\n' | grep -A1 2", "g/h/x:hit\n2\n3\n", 0}, {"grep x nosuch", "~no such file", 2}},
		"gunzip":    {{"echo z > f; gzip f; gunzip f.gz; cat f", "z\n", 0}},
		"gzip":      {{"echo z | gzip -9 | gzip -d", "z\n", 0}, {"echo z > f; gzip -k f; ls f.gz", "f.gz\n", 0}},
		"head":      {{"seq 20 | head -3; seq 5 | head -n -3; printf abcdef | head -c 2", "1\n2\n3\n1\n2\nab", 0}},
		"hostname":  {{"test -n \"$(hostname)\"", "", 0}},
		"id":        {{"test $(id -u) = $UID && id", "~uid=", 0}},
		"kill":      {{"sleep 100 & kill $!; wait $!; echo $?; " + bin + "/kill -l | head -n 1", "143\n 1 SIGHUP\n", 0}},
		"ln":        {{"echo x > f; ln -s f l; readlink l; ln f h; stat -c %h f; ln -sf g l; readlink l", "f\n2\ng\n", 0}},
		"ls":        {{"mkdir -p d/e; touch d/a d/.h; ls d; ls -A d; ls d/a; ls -d d; ls -l d/a", "~a\ne\n.h\na\ne\nd/a\nd\n-rw-", 0}, {"ls nosuch", "~no such file", 2}},
		"md5sum":    {{"printf abc | md5sum", "900150983cd24fb0d6963f7d28e17f72  -\n", 0}},
		"mkdir":     {{"mkdir -p a/b/c && ls a/b", "c\n", 0}},
		"mkfifo":    {{"mkfifo p; echo x > p & cat p", "x\n", 0}},
		"mktemp":    {{"d=$(mktemp -d); test -d $d && rmdir $d", "", 0}},
		"mount":     {{"mount", "~ on / type ", 0}},
		"mv":        {{"echo 1 > a; mv a b; cat b; ls a", "~1\n", 2}},
		"nc":        {{"nc -w 1 127.0.0.1 1 < /dev/null", "~refused", 1}},
		"nl":        {{"printf 'a\\nb\\n' | nl", "     1\ta\n     2\tb\n", 0}},
		"nohup":     {{"nohup echo x", "x\n", 0}},
		"nproc":     {{"test $(nproc) -ge 1", "", 0}},
		"pgrep":     {{"sleep 98 & j=$!; until test \"$(pgrep -P $$ -f '^sleep 98')\" = $j; do :; done; kill $j", "", 0}, {"pgrep -x nosuchprocess", "", 1}},
		"pidof":     {{"pidof nosuchprocess", "", 1}},
		"pkill":     {{"sleep 97 & until pkill -P $$ -f '^sleep 97'; do :; done; wait $!; echo $?", "143\n", 0}},
		"printenv":  {{"A=5 printenv A; printenv NOSUCH", "5\n", 1}},
		"printf":    {{bin + "/printf '%03d %s\\n' 7 x", "007 x\n", 0}},
		"ps":        {{"ps -o pid,args | grep -c \"^ *$$ sh -c\"", "1\n", 0}, {"ps aux | head -n 1", "~PID", 0}, {"ps -o nosuch", "~unknown column", 2}},
		"pwd":       {{"cd / && " + bin + "/pwd", "/\n", 0}},
		"readlink":  {{"ln -s /a/b l; readlink l; readlink nosuch", "/a/b\n", 1}},
		"realpath":  {{"mkdir -p d; ln -s d l; basename $(realpath l)", "d\n", 0}},
		"rev":       {{"echo äbc | rev", "cbä\n", 0}},
		"rm":        {{"mkdir -p d/e; rm -rf d; test ! -e d; rm -f nosuch", "", 0}},
		"rmdir":     {{"mkdir -p a/b; rmdir a", "~not empty", 1}},
		"seq":       {{"seq 3; seq 5 -2 1; seq -w 9 10; seq -s, 2; seq -2 0", "1\n2\n3\n5\n3\n1\n09\n10\n1,2\n-2\n-1\n0\n", 0}},
		"setsid":    {{"setsid echo x; sleep 0.2", "x\n", 0}},
		"sh":        {{"sh -c 'exit 7'", "", 7}},
		"sha1sum":   {{"printf abc | sha1sum | cut -c1-8", "a9993e36\n", 0}},
		"sha256sum": {{"printf abc > f; sha256sum f > s; sha256sum -c s; printf x > f; sha256sum -c s", "f: OK\nf: FAILED\n", 1}},
		"sha512sum": {{"printf abc | sha512sum | cut -c1-8", "ddaf35a1\n", 0}},
		"sleep":     {{"sleep 0.01", "", 0}, {"sleep x", "~bad time", 2}},
		"sort":      {{"printf '10\\n9\\nb\\na\\n9\\n' | sort -u; printf '10\\n9\\n' | sort -n; printf 'x 2\\ny 1\\n' | sort -k2 -r", "10\n9\na\nb\n9\n10\nx 2\ny 1\n", 0}},
		"stat":      {{"printf abc > f; stat -c '%s %F' f", "3 regular file\n", 0}},
		"sync":      {{"sync", "", 0}},
		"tac":       {{"seq 3 | tac", "3\n2\n1\n", 0}},
		"tail":      {{"seq 5 | tail -2; seq 5 | tail -n +4; printf abc | tail -c 1", "4\n5\n4\n5\nc", 0}},
		"tar":       {{"mkdir -p d/e; echo x > d/f; ln -s f d/l; tar czf a.tgz d; tar tf a.tgz | sort; mkdir o; tar -xzf a.tgz -C o; cat o/d/l", "d/\nd/e/\nd/f\nd/l\nx\n", 0}},
		"tee":       {{"echo x | tee a b; cat a b", "x\nx\nx\n", 0}},
		"test":      {{bin + "/test -d / && echo y", "y\n", 0}},
		"time":      {{bin + "/time true", "~real", 0}},
		"timeout":   {{"timeout 0.1 sleep 5", "", 124}, {"timeout 5 sh -c 'exit 3'", "", 3}},
		"touch":     {{"touch f; test -f f", "", 0}},
		"tr":        {{"echo hello | tr a-y b-z; echo aabb | tr -s ab; echo a1b2 | tr -d 0-9; echo x,y | tr , '\\n'; echo ABC | tr '[:upper:]' '[:lower:]'; printf 'a b' | tr -cd a-z", "ifmmp\nab\nab\nx\ny\nabc\nab", 0}},
		"true":      {{bin + "/true", "", 0}},
		"truncate":  {{"truncate -s 5K f; wc -c < f", "5120\n", 0}},
		"tty":       {{"tty < /dev/null", "not a tty\n", 1}},
		"umount":    {{"umount /nosuch/place", "~umount", 1}},
		"uname":     {{"uname; uname -sm | grep -q 'Linux '", "Linux\n", 0}},
		"uniq":      {{"printf 'a\\na\\nb\\n' | uniq -c; printf 'a\\na\\nb\\n' | uniq -d", "      2 a\n      1 b\na\n", 0}},
		"uptime":    {{"uptime", "~load average", 0}},
		"wc":        {{"printf 'a b\\nc\\n' | wc; printf 'a b\\nc\\n' | wc -l", "      2       3       6\n2\n", 0}},
		"which":     {{"which sh; which nosuch", bin + "/sh\n", 1}},
		"whoami":    {{"test -n \"$(whoami)\"", "", 0}},
		"xargs":     {{"seq 4 | xargs -n 2 echo; printf 'a b\\nc\\n' | xargs -I{} echo '<{}>'; printf 'x y\\0z' | xargs -0 -n1 echo; echo 1 | xargs false", "1 2\n3 4\n<a b>\n<c>\nx y\nz\n", 123}},
		"yes":       {{"yes | head -n 2; yes no | head -n 1", "y\ny\nno\n", 0}},
		"zcat":      {{"echo z | gzip > f.gz; zcat f.gz", "z\n", 0}},
	}
	elsewhere := []string{"curl", "wget"}
	for _, name := range tiny.Applets {
		if all[name] == nil && !slices.Contains(elsewhere, name) {
			t.Errorf("%s is not tested", name)
		}
		t.Run(name, func(t *testing.T) {
			for _, c := range all[name] {
				c.run(t, t.TempDir())
			}
		})
	}
}

func TestShell(t *testing.T) {
	for name, c := range map[string]smoke{
		"exit code":       {"exit 7", "", 7},
		"status":          {"false; echo $?", "1\n", 0},
		"last decides":    {"true; false", "", 1},
		"not found":       {"nosuch", "sh: nosuch: command not found\n", 127},
		"no such file":    {"./nosuch", "sh: ./nosuch: No such file or directory\n", 127},
		"not executable":  {"echo > f; ./f", "~permission denied", 126},
		"no shebang":      {"echo 'echo ran $1' > f; chmod +x f; ./f x", "ran x\n", 0},
		"shebang":         {"printf '#!" + bin + "/sh\\necho $0 $1\\n' > f; chmod +x f; ./f x", "~/f x\n", 0},
		"script":          {"echo 'echo $0 $# $2; exit 4' > f; sh f a b", "f 2 b\n", 4},
		"stdin":           {"echo 'echo a; exit 5' | sh", "a\n", 5},
		"login":           {"echo 'X=profile' > .profile; bash -l -c 'echo $X'", "profile\n", 0},
		"errexit":         {"sh -ec 'false; echo no'", "", 1},
		"xtrace":          {"sh -xc 'echo a'", "+ echo a\na\n", 0},
		"syntax error":    {"sh -c 'if'", "~", 2},
		"killed":          {"kill -9 $$", "", 137},
		"child killed":    {"sh -c 'kill -TERM $$'; echo $?", "143\n", 0},
		"pipeline":        {"printf 'b\\na\\n' | sort | head -n 1", "a\n", 0},
		"pipefail":        {"set -o pipefail; false | true", "", 1},
		"redirects":       {"echo a > f; echo b >> f; cat < f; nosuch 2> e; wc -l < e; { echo x; echo y >&2; } > o 2>&1; cat o", "a\nb\n1\nx\ny\n", 0},
		"here document":   {"x=1; cat <<E\n$x\nE\ncat <<'E'\n$x\nE", "1\n$x\n", 0},
		"bash":            {"[[ abc == a* ]] && a=(x y z) && echo ${a[@]:1} ${a[-1]} $((2**10)); for ((i=0; i<2; i++)); do echo $i; done", "y z z 1024\n0\n1\n", 0},
		"functions":       {"f() { local x=2; echo $1 $x; return 3; }; x=1; f a; echo $? $x", "a 2\n3 1\n", 0},
		"substitution":    {"echo $(echo a $(echo b)) `echo c`; diff=$(cat <(echo p)); echo $diff", "a b c\np\n", 0},
		"trap exit":       {"trap 'echo bye $?' EXIT; exit 3", "bye 3\n", 3},
		"trap at end":     {"trap 'echo bye' EXIT; true", "bye\n", 0},
		"trap signal":     {"trap 'echo got; exit 3' TERM; kill $$; echo no", "got\n", 3},
		"trap ignored":    {"trap '' TERM; kill $$; echo yes", "yes\n", 0},
		"trap and wait":   {"trap 'echo got' USR1; (sleep 0.2; kill -USR1 $$) & sleep 5 & wait $!; echo woken $?; kill %2", "got\nwoken 138\n", 0},
		"background":      {"sleep 0.05 & test -d /proc/$! && wait $! && echo ok", "ok\n", 0},
		"background code": {"(exit 9) & wait $!; echo $?", "9\n", 0},
		"background vars": {"x='a b'; a=(1 '2 3'); f() { echo \"f $1 $x ${a[1]}\"; }; f y & wait", "f y a b 2 3\n", 0},
		"background here": {"cat <<E & wait\nhi\nE", "hi\n", 0},
		"several jobs":    {"for i in 1 2 3; do (sleep 0.0$i; echo $i) & done; wait; jobs", "1\n2\n3\n", 0},
		"exec":            {"p=$$; exec sh -c 'test $$ = '$p' && echo same'", "same\n", 0},
		"exec redirect":   {"exec > f; echo x; exec cat f >&2", "x\n", 0},
		"last replaces":   {"sh -c 'echo $$; exec sh -c \"echo \\$\\$\"' | uniq | wc -l", "1\n", 0},
		"umask":           {"umask 077; touch f; stat -c %a f; umask", "600\n0077\n", 0},
		"ulimit":          {"ulimit -n 64; ulimit -n", "64\n", 0},
		"read":            {"printf 'a b\\nc\\n' | while read x y; do echo \"$x-$y\"; done", "a-b\nc-\n", 0},
		"eval":            {"eval 'x=1; echo $x'; . /dev/null; type cd", "~1\n", 0},
		"PATH kept":       {"command -v ls", bin + "/ls\n", 0},
		"sigpipe":         {"yes | head -n 1 > /dev/null; echo ${PIPESTATUS[0]:-none}", "~", 0},
	} {
		t.Run(name, func(t *testing.T) { c.run(t, t.TempDir()) })
	}
	if out, code := sh(t, t.TempDir(), `echo "$0,$1,$*,$#"`, "zero", "one", "two"); out != "zero,one,one two,2\n" || code != 0 {
		t.Errorf("parameters of -c: %q, %d", out, code)
	}
}

// TestLastCommandIsTheProcess expects a signal for the shell to reach the command it was started for.
func TestLastCommandIsTheProcess(t *testing.T) {
	cmd := command(t, t.TempDir(), "sh", "-c", "sleep 1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	comm := filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "cmdline")
	until(t, "the shell to become sleep", func() bool {
		b, _ := os.ReadFile(comm)
		return strings.HasPrefix(string(b), "sleep\x00")
	})
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("ended with %v", err)
	}
}

// TestJobOutlivesShell starts a server the way people do, and expects it to be there when the shell is gone.
func TestJobOutlivesShell(t *testing.T) {
	dir := t.TempDir()
	out, code := sh(t, dir, "(sleep 0.1; echo done > mark; exec sleep 1000) > /dev/null 2>&1 & echo $!")
	pid, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil || code != 0 {
		t.Fatalf("%q, %d", out, code)
	}
	defer syscall.Kill(pid, syscall.SIGKILL)
	until(t, "the job to go on", func() bool { _, err := os.Stat(filepath.Join(dir, "mark")); return err == nil })
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

// TestInteractive talks to a shell on a terminal.
func TestInteractive(t *testing.T) {
	cmd := command(t, t.TempDir(), "sh", "-i")
	cmd.Env = append(cmd.Env, "TERM=xterm", "PS1=ready> ")
	tty, err := pty.Start(cmd)
	if err != nil {
		t.Skipf("no pseudo terminal here: %v", err)
	}
	defer tty.Close()
	defer cmd.Process.Kill()
	seen := make(chan string, 100)
	go func() {
		defer close(seen)
		for buf := make([]byte, 4096); ; {
			n, err := tty.Read(buf)
			if err != nil {
				return
			}
			seen <- string(buf[:n])
		}
	}()
	var all string // that came and was not expected yet
	expect := func(text string) {
		t.Helper()
		for deadline := time.After(5 * time.Second); !strings.Contains(all, text); {
			select {
			case s := <-seen:
				all += s
			case <-deadline:
				t.Fatalf("%q did not come, but %q", text, all)
			}
		}
		_, all, _ = strings.Cut(all, text)
	}
	expect("ready> ")
	fmt.Fprint(tty, "x=4; echo $((x+3))8\r")
	expect("78")
	expect("ready> ")
	fmt.Fprint(tty, "sleep 1000\r")
	until(t, "sleep to run", func() bool {
		b, _ := exec.Command(filepath.Join(bin, "pgrep"), "-P", strconv.Itoa(cmd.Process.Pid)).Output()
		return len(b) > 0
	})
	fmt.Fprint(tty, "\x03")
	expect("ready> ")
	fmt.Fprint(tty, "forget this\x03")
	expect("ready> ")
	// What is called off before it was read does not run: here it would keep the shell for ever.
	fmt.Fprint(tty, "touch mark; sleep 1000\r\x03")
	expect("ready> ")
	fmt.Fprint(tty, "forget\x03echo $((40+2))1\r")
	expect("421")
	expect("ready> ")
	if _, err := os.Stat(filepath.Join(cmd.Dir, "mark")); err == nil {
		t.Error("the line ran")
	}
	fmt.Fprint(tty, "if true\r")
	expect("> ")
	fmt.Fprint(tty, "then echo multi'line'; fi\r")
	expect("multiline")
	fmt.Fprint(tty, "exit 6\r")
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 6 {
		t.Errorf("ended with %v", err)
	}
}

func TestWeb(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/gone":
			http.Error(w, "gone", http.StatusGone)
		case "/move":
			http.Redirect(w, r, "/file", http.StatusFound)
		default:
			fmt.Fprintf(w, "%s %s %s\n", r.Method, r.Header.Get("X-Test"), r.FormValue("a"))
		}
	}))
	defer server.Close()
	for _, c := range []smoke{
		{"curl -sS -H 'X-Test: yes' URL/", "GET yes \n", 0},
		{"curl -s -d a=1 URL/", "POST  1\n", 0},
		{"curl -sfL URL/move", "GET  \n", 0},
		{"curl -sf URL/gone", "", 22},
		{"curl -s -o /dev/null http://127.0.0.1:1/", "", 7},
		{"curl -s -o f URL/; cat f", "GET  \n", 0},
		{"wget -q -O - URL/file", "GET  \n", 0},
		{"wget -q URL/file; cat file", "GET  \n", 0},
		{"wget -q URL/gone", "~410", 1},
	} {
		c.script = strings.ReplaceAll(c.script, "URL", server.URL)
		c.run(t, t.TempDir())
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 100)
		n, _ := c.Read(buf)
		fmt.Fprintf(c, "got %s", buf[:n])
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	smoke{"echo hi | nc 127.0.0.1 " + port, "got hi\n", 0}.run(t, t.TempDir())
}

// TestTarStaysInside unpacks an archive that tries to write elsewhere.
func TestTarStaysInside(t *testing.T) {
	dir := t.TempDir()
	out, code := sh(t, dir, `
mkdir -p in/evil out
ln -s ../../.. in/evil/up
tar -C in -cf a.tar evil
rm -r in/evil; mkdir -p in/evil/up; echo bad > in/evil/up/escaped
tar -C in -cf b.tar evil/up/escaped
cd out; tar -xf ../a.tar; tar -xf ../b.tar`)
	if code == 0 {
		t.Errorf("the archive was unpacked: %s", out)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(dir), "escaped")); err == nil {
		t.Error("a file was written outside")
	}
}

// TestStartIsFast guards the time to a prompt: agents start a shell for every command.
func TestStartIsFast(t *testing.T) {
	best := time.Hour
	for range 10 {
		start := time.Now()
		if out, code := sh(t, t.TempDir(), "echo hi"); out != "hi\n" || code != 0 {
			t.Fatal(out, code)
		}
		best = min(best, time.Since(start))
	}
	t.Logf("sh -c 'echo hi' takes %v", best)
	if best > 50*time.Millisecond {
		t.Errorf("sh -c 'echo hi' takes %v at best", best)
	}
}
