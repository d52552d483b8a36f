package account_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/account"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func book(t *testing.T, passwd, group string) (*account.Book, string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"passwd": passwd, "group": group} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return account.NewBook(dir), dir
}

func TestLookup(t *testing.T) {
	b, dir := book(t, "# comment\nroot:x:0:0:root:/root:/bin/sh\n\nbad line\nodd:x:nan:0::/:/bin/sh\r\nuser:x:1000:1000:::/bin/bash\n",
		"root:x:0:\nteam:x:50:a,user\nother:x:51:userx\nuser:x:1000:user\nbad\n")
	u, err := b.Lookup("user")
	if err != nil || u.UID != 1000 || u.Home != "/" || u.Shell != "/bin/bash" || !slices.Equal(u.Groups, []uint32{1000, 50}) {
		t.Errorf("%+v %v", u, err)
	}
	for _, name := range []string{"nobody", "", "odd", "bad line", "1000", "user:x"} {
		if _, err := b.Lookup(name); !tartarus.Is(err, tartarus.Unauthenticated) || err.Error() != fmt.Sprintf("invalid username: '%s'", name) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if b.UserName(1000) != "user" || b.GroupName(50) != "team" || b.UserName(77) != "77" {
		t.Error("names of ids")
	}
	// Changes are seen at once.
	if err := os.WriteFile(dir+"/passwd", []byte("user:x:1001:1000::/home/user:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if u, err = b.Lookup("user"); err != nil || u.UID != 1001 {
		t.Errorf("%+v %v", u, err)
	}
	// Without any file there is still root.
	if err := os.Remove(dir + "/passwd"); err != nil {
		t.Fatal(err)
	}
	if u, err = b.Lookup("root"); err != nil || u.UID != 0 || u.Home != "/root" {
		t.Errorf("%+v %v", u, err)
	}
	if b.Exists("user") {
		t.Error("a removed user exists")
	}
}

func TestResolve(t *testing.T) {
	u := account.User{Name: "user", Home: "/home/user"}
	for _, c := range []struct{ path, workdir, want string }{
		{"a", "", "/home/user/a"}, {"./a/../b", "", "/home/user/b"}, {"../x", "", "/home/x"}, {"../../../../etc/passwd", "", "/etc/passwd"},
		{"/etc//passwd/", "", "/etc/passwd"}, {"~", "", "/home/user"}, {"~/a", "", "/home/user/a"}, {"~/../x", "", "/home/x"},
		{"", "", "/home/user"}, {"", "/work", "/work"}, {"", "~/work", "/home/user/work"}, {"a", "/work", "/home/user/a"}, {"/", "", "/"}, {"a~b", "", "/home/user/a~b"},
	} {
		if got, err := u.Resolve(c.path, c.workdir); err != nil || got != c.want {
			t.Errorf("%q in %q: %q %v", c.path, c.workdir, got, err)
		}
	}
	for _, path := range []string{"~root", "~root/x", "a\x00b"} {
		if got, err := u.Resolve(path, ""); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("%q: %q %v", path, got, err)
		}
	}
}

// Many at once, as different users: each acts as itself, and nobody is left with another's identity.
func TestActConcurrently(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it acts as other users")
	}
	dir, err := os.MkdirTemp("", "account-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	secret := dir + "/secret"
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for i := range 64 {
		wait.Go(func() {
			u := account.User{Name: "u", UID: uint32(i % 4 * 1000), GID: uint32(i % 4 * 1001), Groups: []uint32{uint32(i % 4 * 1001)}}
			for n := range 20 {
				path := fmt.Sprintf("%s/%d-%d", dir, i, n)
				err := u.Act(func() error {
					if _, err := os.ReadFile(secret); (err == nil) != (u.UID == 0) {
						return fmt.Errorf("reading root's file as %d: %v", u.UID, err)
					}
					return os.WriteFile(path, nil, 0o600)
				})
				st, serr := os.Stat(path)
				if err != nil || serr != nil {
					t.Errorf("%v %v", err, serr)
					return
				}
				if sys := st.Sys().(*syscall.Stat_t); sys.Uid != u.UID || sys.Gid != u.GID && u.UID != 0 {
					t.Errorf("made by %d:%d, owned by %d:%d", u.UID, u.GID, sys.Uid, sys.Gid)
				}
				if _, err := os.ReadFile(secret); err != nil {
					t.Errorf("afterwards: %v", err)
				}
			}
		})
	}
	wait.Wait()
}

func TestActPassesErrorsAndPanicsOn(t *testing.T) {
	u := account.User{Name: "u", UID: 1000, GID: 1000, Groups: []uint32{1000}}
	if err := u.Act(func() error { return fs.ErrClosed }); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("%v", err)
	}
	func() {
		defer func() {
			if recover() != "boom" {
				t.Error("the panic is lost")
			}
		}()
		_ = u.Act(func() error { panic("boom") })
	}()
	if os.Geteuid() == 0 {
		if _, err := os.ReadFile("/etc/shadow"); err != nil {
			t.Errorf("after a panic the thread is not root: %v", err)
		}
	}
}
