package spawn

import (
	"errors"
	"io"
	"os"
	"regexp"
	"syscall"
	"testing"
	"time"
)

// run starts /bin/sh with script by fork and returns what it printed.
func run(t *testing.T, fork func(string, []string, *syscall.ProcAttr) (int, error), script string) string {
	t.Helper()
	w, err := Pipes(true)
	if err != nil {
		t.Fatal(err)
	}
	attr := &syscall.ProcAttr{Dir: "/proc", Env: []string{"PATH=" + defaultPath}, Files: w.child, Sys: &syscall.SysProcAttr{Setsid: true}}
	if os.Geteuid() == 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: 65534, Gid: 65533, Groups: []uint32{65532, 65533}}
	}
	pid, err := fork("/bin/sh", []string{"sh", "-c", script}, attr)
	w.handOver()
	defer w.abandon()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip("needs Linux 5.5 on amd64")
	}
	if err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil || status != 0 {
		t.Fatalf("ended with %x, %v", status, err)
	}
	_ = w.Outputs[0].File.SetReadDeadline(time.Now().Add(time.Minute))
	out, err := io.ReadAll(w.Outputs[0].File)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestForkIsLikeTheStandardOne compares what a program finds, of all that the kernel shows of a process, with what package syscall starts it with.
func TestForkIsLikeTheStandardOne(t *testing.T) {
	const show = `pwd; id; ulimit -n; ls /proc/self/fd | wc -l; grep -E '^(Sig|Shd|Uid|Gid|Groups|Cap|NoNew|Seccomp:)' /proc/self/status; ` +
		`set -- $(cat /proc/$$/stat); test $1 = $5 && test $1 = $6 && echo leads its group and session`
	// Go raises this limit at its start and puts it back in children, unless somebody has set it since, as the agent does.
	var files syscall.Rlimit
	if err := errors.Join(syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files), syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files)); err != nil {
		t.Fatal(err)
	}
	pending := regexp.MustCompile(`(?m)^S..Pnd.*\n`)
	ours, theirs := run(t, forkExec, show), run(t, syscall.ForkExec, show)
	if pending.ReplaceAllString(ours, "") != pending.ReplaceAllString(theirs, "") {
		t.Errorf("ours:\n%s\ntheirs:\n%s", ours, theirs)
	}
}

// TestForkSaysWhatFailed has each of the steps after the fork fail.
func TestForkSaysWhatFailed(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	files := []uintptr{null.Fd(), null.Fd(), null.Fd()}
	for name, c := range map[string]struct {
		path, dir string
		files     []uintptr
		terminal  bool
		want      error
	}{
		"no program":        {path: "/nowhere", dir: "/", files: files, want: syscall.ENOENT},
		"no folder":         {path: "/bin/sh", dir: "/nowhere", files: files, want: syscall.ENOENT},
		"not executable":    {path: "/etc/passwd", dir: "/", files: files, want: syscall.EACCES},
		"not a terminal":    {path: "/bin/sh", dir: "/", files: files, terminal: true, want: syscall.ENOTTY},
		"a closed file":     {path: "/bin/sh", dir: "/", files: []uintptr{null.Fd(), null.Fd(), 1 << 20}, want: syscall.EBADF},
		"a standard file":   {path: "/bin/sh", dir: "/", files: []uintptr{null.Fd(), 0, null.Fd()}, want: syscall.EBADF},
		"a zero in a name":  {path: "/bin/\x00sh", dir: "/", files: files, want: syscall.EINVAL},
		"a zero in the dir": {path: "/bin/sh", dir: "/\x00", files: files, want: syscall.EINVAL},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := forkExec(c.path, []string{"sh", "-c", "exit 0"}, &syscall.ProcAttr{
				Dir: c.dir, Files: c.files, Sys: &syscall.SysProcAttr{Setsid: true, Setctty: c.terminal},
			})
			if errors.Is(err, errors.ErrUnsupported) {
				t.Skip("needs Linux 5.5 on amd64")
			}
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if _, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); !errors.Is(err, syscall.ECHILD) {
				t.Errorf("a child is left: %v", err)
			}
		})
	}
}
