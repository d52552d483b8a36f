package guest_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"connectrpc.com/connect"

	"github.com/tartarus-sandbox/tartarus"
	filesystempb "github.com/tartarus-sandbox/tartarus/api/gen/filesystem"
)

// as makes a call in the name of a user.
func as[T any](user string, msg *T) *connect.Request[T] {
	req := connect.NewRequest(msg)
	r := &http.Request{Header: req.Header()}
	r.SetBasicAuth(user, "")
	return req
}

// do sends a request and returns status, header and body.
func (a *agent) do(t *testing.T, method, path string, body io.Reader, header ...string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, a.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	res, err := a.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: %v after %d bytes", method, path, err, len(data))
	}
	return res.StatusCode, res.Header, string(data)
}

// form makes a multipart body with a part for each name and content.
func form(t *testing.T, parts ...string) (body *bytes.Buffer, contentType string) {
	t.Helper()
	body = &bytes.Buffer{}
	w := multipart.NewWriter(body)
	for i := 0; i < len(parts); i += 2 {
		h := textproto.MIMEHeader{"Content-Disposition": {fmt.Sprintf(`form-data; name="file"; filename="%s"`, parts[i])}, "Content-Type": {"application/octet-stream"}}
		p, err := w.CreatePart(h)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(p, parts[i+1])
	}
	w.Close()
	return body, w.FormDataContentType()
}

func q(pairs ...string) string {
	v := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		v.Set(pairs[i], pairs[i+1])
	}
	return "/files?" + v.Encode()
}

// What the user may not do is done on the user's behalf, and is the user's then.
func TestOnBehalfOfTheUser(t *testing.T) {
	needRoot(t)
	a := start(t)
	secret := a.write(t, "secret", "s")
	closed := filepath.Join(a.root, "closed")
	if err := errors.Join(os.Chmod(secret, 0o640), os.Mkdir(closed, 0o700), os.Symlink("closed", a.root+"/link")); err != nil {
		t.Fatal(err)
	}
	octet := []string{"Content-Type", "application/octet-stream"}
	for _, path := range []string{secret, closed + "/x", closed + "/deep/er/y", a.root + "/link/z", a.root + "/link/also/z"} {
		if status, _, answer := a.do(t, "POST", q("path", path), strings.NewReader("new "+path), octet...); status != 200 {
			t.Errorf("write %s: %d %s", path, status, answer)
			continue
		}
		if status, _, body := a.do(t, "GET", q("path", path), nil); status != 200 || body != "new "+path {
			t.Errorf("read %s: %d %q", path, status, body)
		}
		owned(t, path, userID)
	}
	owned(t, closed, 0)
	for _, dir := range []string{"/deep", "/deep/er", "/also"} {
		owned(t, closed+dir, userID)
	}
	if st, err := os.Stat(secret); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("the mode of what was there: %v, %v", st.Mode(), err)
	}
	_, meta, _ := a.do(t, "POST", q("path", closed+"/m"), strings.NewReader("x"), append(octet, "X-Metadata-Who", "me")...)
	if res, err := a.fs.Stat(t.Context(), as("user", &filesystempb.StatRequest{Path: closed + "/m"})); err != nil || res.Msg.GetEntry().GetOwner() != "user" {
		t.Errorf("stat: %v, %v (%v)", res, err, meta)
	}
	for _, path := range []string{closed, closed + "/none/none"} {
		if status, _, body := a.do(t, "GET", q("path", path), nil); status != 400 && status != 404 {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if status, _, answer := a.do(t, "POST", q("path", closed), strings.NewReader("x"), octet...); status != 400 {
		t.Errorf("write to a folder: %d %s", status, answer)
	}
	if status, _, answer := a.do(t, "POST", q("path", secret+"/x"), strings.NewReader("x"), octet...); status != 400 {
		t.Errorf("write below a file: %d %s", status, answer)
	}
	// The agent's own permissions are as before.
	if status, _, _ := a.do(t, "GET", q("path", secret, "username", "root"), nil); status != 200 {
		t.Errorf("root afterwards: %d", status)
	}
}

func owned(t *testing.T, path string, uid uint32) {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Error(err)
		return
	}
	if sys := st.Sys().(*syscall.Stat_t); sys.Uid != uid {
		t.Errorf("%s belongs to %d, not %d", path, sys.Uid, uid)
	}
}

func TestCallsOnBehalfOfTheUser(t *testing.T) {
	needRoot(t)
	a := start(t)
	ctx := t.Context()
	closed := filepath.Join(a.root, "closed")
	for _, dir := range []string{closed, closed + "/sub", closed + "/away"} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	a.write(t, "closed/sub/f", "f")
	part1, part2 := a.write(t, "closed/p1", "one "), a.write(t, "closed/p2", "two")
	if res, err := a.fs.ListDir(ctx, as("user", &filesystempb.ListDirRequest{Path: closed, Depth: 2})); err != nil || len(res.Msg.GetEntries()) != 5 {
		t.Errorf("list: %v, %v", res, err)
	}
	// A folder that can be read, with one in it that cannot.
	if res, err := a.fs.ListDir(ctx, as("user", &filesystempb.ListDirRequest{Path: a.root, Depth: 2})); err != nil || !strings.Contains(res.Msg.String(), closed+"/sub") {
		t.Errorf("list above: %v, %v", res, err)
	}
	if _, err := a.fs.MakeDir(ctx, as("user", &filesystempb.MakeDirRequest{Path: closed + "/a/b"})); err != nil {
		t.Errorf("mkdir: %v", err)
	}
	owned(t, closed+"/a/b", userID)
	if _, err := a.fs.MakeDir(ctx, as("user", &filesystempb.MakeDirRequest{Path: closed + "/sub"})); connect.CodeOf(err) != connect.CodeAlreadyExists {
		t.Errorf("mkdir again: %v", err)
	}
	if res, err := a.fs.Move(ctx, as("user", &filesystempb.MoveRequest{Source: closed + "/sub", Destination: closed + "/new/place"})); err != nil || res.Msg.GetEntry().GetPath() != closed+"/new/place" {
		t.Errorf("move: %v, %v", res, err)
	}
	owned(t, closed+"/new", userID)
	if _, err := a.fs.Move(ctx, as("user", &filesystempb.MoveRequest{Source: closed + "/none", Destination: closed + "/x"})); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("move of nothing: %v", err)
	}
	body := fmt.Sprintf(`{"source_paths":[%q,%q],"destination":%q}`, part1, part2, closed+"/whole/one")
	if status, _, answer := a.do(t, "POST", "/files/compose", strings.NewReader(body)); status != 200 || read(t, closed+"/whole/one") != "one two" {
		t.Errorf("compose: %d %s", status, answer)
	}
	owned(t, closed+"/whole/one", userID)
	if _, err := os.Stat(part1); !os.IsNotExist(err) {
		t.Errorf("the part is there: %v", err)
	}
	watcher, err := a.fs.CreateWatcher(ctx, as("user", &filesystempb.CreateWatcherRequest{Path: closed, Recursive: true}))
	if err != nil {
		t.Fatalf("watch: %v", err)
	}
	a.write(t, "closed/new/place/seen", "x")
	eventually(t, "the change is seen", func() bool {
		res, err := a.fs.GetWatcherEvents(ctx, as("user", &filesystempb.GetWatcherEventsRequest{WatcherId: watcher.Msg.GetWatcherId()}))
		return err == nil && strings.Contains(res.Msg.String(), "new/place/seen")
	})
	if _, err := a.fs.Remove(ctx, as("user", &filesystempb.RemoveRequest{Path: closed})); err != nil {
		t.Errorf("remove: %v", err)
	}
	if _, err := os.Stat(closed); !os.IsNotExist(err) {
		t.Errorf("it is there: %v", err)
	}
}

// Code inside cannot make the agent write, remove or give away what the user could not, by links that it lays in the client's way.
func TestLinksLaidByTheUser(t *testing.T) {
	needRoot(t)
	a := start(t)
	ctx := t.Context()
	closed := filepath.Join(a.root, "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	victim := a.write(t, "closed/victim", "precious")
	if err := os.Chmod(victim, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"file": victim, "dir": closed, "new": closed + "/made", "dots": "../../closed", "self": "self"} {
		if err := errors.Join(os.Symlink(to, a.home+"/"+name), os.Lchown(a.home+"/"+name, userID, userID)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(victim, a.home+"/hard"); err != nil {
		t.Fatal(err)
	}
	octet := []string{"Content-Type", "application/octet-stream"}
	for _, name := range []string{"file", "dir/victim", "dir/x", "dir/deep/x", "new", "dots/victim", "hard"} {
		if status, _, answer := a.do(t, "POST", q("path", name), strings.NewReader("evil"), octet...); status != 403 {
			t.Errorf("write %s: %d %s", name, status, answer)
		}
	}
	if status, _, answer := a.do(t, "POST", q("path", "self"), strings.NewReader("x"), octet...); status != 400 {
		t.Errorf("a link to itself: %d %s", status, answer)
	}
	for _, name := range []string{"file", "dir/victim", "dots/victim"} {
		if status, _, answer := a.do(t, "GET", q("path", name), nil); status != 403 {
			t.Errorf("read %s: %d %s", name, status, answer)
		}
	}
	calls := map[string]error{}
	_, calls["list"] = a.fs.ListDir(ctx, as("user", &filesystempb.ListDirRequest{Path: "dir"}))
	_, calls["stat"] = a.fs.Stat(ctx, as("user", &filesystempb.StatRequest{Path: "dir/victim"}))
	_, calls["mkdir"] = a.fs.MakeDir(ctx, as("user", &filesystempb.MakeDirRequest{Path: "dir/y"}))
	_, calls["remove"] = a.fs.Remove(ctx, as("user", &filesystempb.RemoveRequest{Path: "dir/victim"}))
	_, calls["move from"] = a.fs.Move(ctx, as("user", &filesystempb.MoveRequest{Source: "dir/victim", Destination: "mine"}))
	_, calls["move to"] = a.fs.Move(ctx, as("user", &filesystempb.MoveRequest{Source: "hard", Destination: "dir/hard"}))
	_, calls["watch"] = a.fs.CreateWatcher(ctx, as("user", &filesystempb.CreateWatcherRequest{Path: "dir"}))
	for name, err := range calls {
		if connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
	body := `{"source_paths":["dir/victim"],"destination":"mine"}`
	if status, _, answer := a.do(t, "POST", "/files/compose", strings.NewReader(body)); status != 403 {
		t.Errorf("compose: %d %s", status, answer)
	}
	if got := read(t, victim); got != "precious" {
		t.Errorf("it was changed: %q", got)
	}
	owned(t, victim, 0)
	if names, err := os.ReadDir(closed); err != nil || len(names) != 1 {
		t.Errorf("left in the closed folder: %v, %v", names, err)
	}
	// Removing a link removes the link, whoever may do what behind it.
	if _, err := a.fs.Remove(ctx, as("user", &filesystempb.RemoveRequest{Path: "file"})); err != nil || read(t, victim) != "precious" {
		t.Errorf("remove a link: %v", err)
	}
}

func TestDownload(t *testing.T) {
	a := start(t)
	text := strings.Repeat("0123456789", 1000)
	path := a.write(t, "ten.txt", text)
	get := func(header ...string) (int, http.Header, string) {
		return a.do(t, "GET", q("path", path, "username", "root"), nil, header...)
	}
	status, h, body := get()
	if status != 200 || body != text || h.Get("Content-Length") != "10000" || h.Get("Content-Disposition") != "inline; filename=ten.txt" || h.Get("Vary") != "Accept-Encoding" {
		t.Errorf("%d %v", status, h)
	}
	contains(t, h.Get("Content-Type"), "text/plain")
	tag := h.Get("ETag")
	if status, h, body = get("Range", "bytes=5-14"); status != 206 || body != "5678901234" || h.Get("Content-Range") != "bytes 5-14/10000" {
		t.Errorf("range: %d %q %v", status, body, h)
	}
	if status, _, _ = get("Range", "bytes=99999-"); status != 416 {
		t.Errorf("range beyond: %d", status)
	}
	if status, _, body = get("If-None-Match", tag); status != 304 || body != "" {
		t.Errorf("unchanged: %d %q", status, body)
	}
	if status, h, body = get("Accept-Encoding", "gzip"); status != 200 || h.Get("Content-Encoding") != "gzip" || len(body) > 1000 {
		t.Errorf("gzip: %d %v", status, h)
	}
	z, err := gzip.NewReader(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := io.ReadAll(z); err != nil || string(plain) != text {
		t.Errorf("gzip: %d bytes, %v", len(plain), err)
	}
	if status, _, body = get("Accept-Encoding", "gzip", "Range", "bytes=0-0"); status != 206 || body != "0" {
		t.Errorf("a range is not compressed: %d %q", status, body)
	}
	for accept, want := range map[string]int{"br;q=1, identity;q=0": 406, "*;q=0": 406, "gzip;q=x": 400, "br": 200, "identity": 200, "gzip;q=0": 200} {
		if status, h, _ = get("Accept-Encoding", accept); status != want || h.Get("Content-Encoding") != "" {
			t.Errorf("%s: %d %v", accept, status, h)
		}
	}
	for path, want := range map[string]int{a.root: 400, a.root + "/none": 404, "/dev/zero": 400, path + "/x": 400} {
		if status, _, body := a.do(t, "GET", q("path", path, "username", "root"), nil); status != want {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if status, _, _ := a.do(t, "GET", q("path", path, "username", "nobody123"), nil); status != 401 {
		t.Errorf("bad user: %d", status)
	}
}

func TestDownloadOfFilesWithoutSize(t *testing.T) {
	a := start(t)
	status, _, body := a.do(t, "GET", q("path", "/proc/self/status", "username", "root"), nil)
	if status != 200 || !strings.Contains(body, "Pid:") {
		t.Errorf("procfs: %d %q", status, body)
	}
	// sysfs claims a page and holds less.
	const sysfs = "/sys/class/net/lo/mtu"
	if mtu, err := os.ReadFile(sysfs); err != nil {
		t.Logf("without %s its kind is not tested", sysfs)
	} else if status, _, body = a.do(t, "GET", q("path", sysfs, "username", "root"), nil); status != 200 || body != string(mtu) {
		t.Errorf("sysfs: %d %q", status, body)
	}
	empty := a.write(t, "empty", "")
	if status, h, body := a.do(t, "GET", q("path", empty, "username", "root"), nil); status != 200 || body != "" || h.Get("Content-Length") != "0" {
		t.Errorf("empty: %d %q %v", status, body, h)
	}
	if status, h, _ := a.do(t, "HEAD", q("path", "/proc/self/status", "username", "root"), nil); status != 200 {
		t.Errorf("head: %d %v", status, h)
	}
}

func TestMetadata(t *testing.T) {
	a := start(t)
	path := a.root + "/meta"
	octet := []string{"Content-Type", "application/octet-stream"}
	status, _, answer := a.do(t, "POST", q("path", path, "username", "root"), strings.NewReader("x"), append(octet, "X-Metadata-Some-Key", "v 1", "X-Metadata-Other", "")...)
	if status == 501 {
		t.Skip("this file system has no user extended attributes")
	}
	contains(t, answer, `"metadata":{"other":"","some-key":"v 1"}`)
	stat := func() map[string]string {
		res, err := a.fs.Stat(t.Context(), as("root", &filesystempb.StatRequest{Path: path}))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg.Entry.Metadata
	}
	if m := stat(); len(m) != 2 || m["some-key"] != "v 1" {
		t.Errorf("%v", m)
	}
	// Overwriting replaces all of it.
	a.do(t, "POST", q("path", path, "username", "root"), strings.NewReader("x"), append(octet, "X-Metadata-New", "n")...)
	if m := stat(); len(m) != 1 || m["new"] != "n" {
		t.Errorf("%v", m)
	}
}

func TestCompose(t *testing.T) {
	a := start(t)
	dir := openDir(t)
	for i, part := range []string{"one ", "two ", "three"} {
		if err := os.WriteFile(fmt.Sprintf("%s/p%d", dir, i), []byte(part), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	compose := func(body string) (int, string) {
		status, _, answer := a.do(t, "POST", "/files/compose", strings.NewReader(strings.ReplaceAll(body, "$", dir)), "Content-Type", "application/json")
		return status, answer
	}
	for body, want := range map[string]int{
		`{`: 400, `{}`: 400, `{"source_paths":["$/p0"]}`: 400, `{"source_paths":[],"destination":"$/all"}`: 400,
		`{"source_paths":["$/p0","$/none"],"destination":"$/all","username":"root"}`:    404,
		`{"source_paths":["$/p0","$"],"destination":"$/all","username":"root"}`:         400,
		`{"source_paths":["$/p0","$/all"],"destination":"$/all","username":"root"}`:     400,
		`{"source_paths":["$/p0"],"destination":"$","username":"root"}`:                 400,
		`{"source_paths":["$/p0"],"destination":"$/all","username":"nobody123"}`:        401,
		`{"source_paths":["$/p0"],"destination":"$/p1/below/all","username":"root"}`:    400,
		`{"source_paths":["$/p0"],"destination":"` + "\\u0000" + `","username":"root"}`: 400,
	} {
		if status, answer := compose(body); status != want {
			t.Errorf("%s: %d %s", body, status, answer)
		}
	}
	status, answer := compose(`{"source_paths":["$/p0","$/p1","$/p2"],"destination":"$/sub/all","username":"root"}`)
	if status != 200 || answer != fmt.Sprintf(`{"path":"%s/sub/all","name":"all","type":"file"}`, dir) || read(t, dir+"/sub/all") != "one two three" {
		t.Errorf("%d %s", status, answer)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("left: %v %v", left, err)
	}
}

func TestFolders(t *testing.T) {
	a := start(t)
	dir := openDir(t)
	ctx := t.Context()
	made, err := a.fs.MakeDir(ctx, as("root", &filesystempb.MakeDirRequest{Path: dir + "/a/b"}))
	if err != nil || made.Msg.Entry.Path != dir+"/a/b" || made.Msg.Entry.Type != filesystempb.FileType_FILE_TYPE_DIRECTORY || made.Msg.Entry.Permissions != "drwxr-xr-x" {
		t.Fatalf("%v %v", made, err)
	}
	if _, err = a.fs.MakeDir(ctx, as("root", &filesystempb.MakeDirRequest{Path: dir + "/a"})); connect.CodeOf(err) != connect.CodeAlreadyExists {
		t.Errorf("again: %v", err)
	}
	if err := os.WriteFile(dir+"/a/b/file", []byte("12345"), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err = a.fs.MakeDir(ctx, as("root", &filesystempb.MakeDirRequest{Path: dir + "/a/b/file"})); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("over a file: %v", err)
	}
	for link, target := range map[string]string{"/to-file": dir + "/a/b/file", "/to-dir": "a", "/nowhere": "/no/such", "/loop": "loop"} {
		if err := os.Symlink(target, dir+link); err != nil {
			t.Fatal(err)
		}
	}
	list := func(path string, depth uint32) []string {
		res, err := a.fs.ListDir(ctx, as("root", &filesystempb.ListDirRequest{Path: path, Depth: depth}))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range res.Msg.Entries {
			names = append(names, strings.TrimPrefix(e.Path, dir))
		}
		return names
	}
	if got := list(dir, 0); !slices.Equal(got, []string{"/a", "/loop", "/nowhere", "/to-dir", "/to-file"}) {
		t.Errorf("depth 0: %v", got)
	}
	if got := list(dir, 3); !slices.Equal(got, []string{"/a", "/a/b", "/a/b/file", "/loop", "/nowhere", "/to-dir", "/to-file"}) {
		t.Errorf("depth 3: %v", got)
	}
	if got := list(dir+"/to-dir", 1); !slices.Equal(got, []string{"/to-dir/b"}) {
		t.Errorf("through a link: %v", got)
	}
	entry := func(path string) *filesystempb.EntryInfo {
		res, err := a.fs.Stat(ctx, as("root", &filesystempb.StatRequest{Path: dir + path}))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg.Entry
	}
	if e := entry("/a/b/file"); e.Type != filesystempb.FileType_FILE_TYPE_FILE || e.Size != 5 || e.Mode != 0o640 || e.Permissions != "-rw-r-----" || e.Owner != "root" || e.SymlinkTarget != nil || e.IsSymlink {
		t.Errorf("%v", e)
	}
	if e := entry("/to-file"); e.Type != filesystempb.FileType_FILE_TYPE_FILE || !e.IsSymlink || e.GetSymlinkTarget() != dir+"/a/b/file" || e.Mode != 0o640 {
		t.Errorf("%v", e)
	}
	if e := entry("/nowhere"); e.Type != filesystempb.FileType_FILE_TYPE_SYMLINK || !e.IsSymlink || e.GetSymlinkTarget() != "/no/such" {
		t.Errorf("%v", e)
	}
	for path, code := range map[string]connect.Code{"/none": connect.CodeNotFound, "/a/b/file": connect.CodeInvalidArgument, "/loop": connect.CodeInvalidArgument} {
		if _, err := a.fs.ListDir(ctx, as("root", &filesystempb.ListDirRequest{Path: dir + path})); connect.CodeOf(err) != code {
			t.Errorf("list %s: %v", path, err)
		}
	}
	if _, err := a.fs.Stat(ctx, as("root", &filesystempb.StatRequest{Path: dir + "/none"})); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("stat: %v", err)
	}
}

func TestMoveAndRemove(t *testing.T) {
	a := start(t)
	dir := openDir(t)
	ctx := t.Context()
	a.do(t, "POST", q("path", dir+"/from/f", "username", "root"), strings.NewReader("x"), "Content-Type", "application/octet-stream")
	res, err := a.fs.Move(ctx, as("root", &filesystempb.MoveRequest{Source: dir + "/from", Destination: dir + "/deep/to"}))
	if err != nil || res.Msg.Entry.Path != dir+"/deep/to" || read(t, dir+"/deep/to/f") != "x" {
		t.Errorf("%v %v", res, err)
	}
	if _, err := a.fs.Move(ctx, as("root", &filesystempb.MoveRequest{Source: dir + "/from", Destination: dir + "/x"})); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("gone: %v", err)
	}
	if _, err := a.fs.Move(ctx, as("root", &filesystempb.MoveRequest{Source: dir + "/deep", Destination: dir + "/deep/in/itself"})); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("into itself: %v", err)
	}
	for range 2 { // what is gone is removed
		if _, err := a.fs.Remove(ctx, as("root", &filesystempb.RemoveRequest{Path: dir + "/deep"})); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	if _, err := os.Stat(dir + "/deep"); err == nil {
		t.Error("not removed")
	}
	if _, err := a.fs.Remove(ctx, as("root", &filesystempb.RemoveRequest{Path: "/"})); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("root folder: %v", err)
	}
}

// /dev/shm is another file system than the temporary folder, as /tmp is in some sandboxes.
func TestMoveAcrossFileSystems(t *testing.T) {
	needRoot(t)
	a := start(t)
	shm, err := os.MkdirTemp("/dev/shm", "guest-test-")
	if err != nil {
		t.Skipf("needs a writable /dev/shm: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(shm) })
	dir := openDir(t)
	src := dir + "/src"
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(src+"/sub", 0o750))
	must(os.WriteFile(src+"/sub/f", []byte("content"), 0o600))
	must(os.Chown(src+"/sub/f", userID, 54400))
	must(os.Chmod(src+"/sub/f", 0o4711))
	must(os.Symlink("sub/f", src+"/link"))
	before, err := os.Stat(src + "/sub/f")
	must(err)
	if _, err := a.fs.Move(t.Context(), as("root", &filesystempb.MoveRequest{Source: src, Destination: shm + "/dst"})); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(shm + "/dst/link")
	must(err)
	if read(t, shm+"/dst/sub/f") != "content" || after.Mode() != before.Mode() || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("%v %v, before %v %v", after.Mode(), after.ModTime(), before.Mode(), before.ModTime())
	}
	res, err := a.fs.Stat(t.Context(), as("root", &filesystempb.StatRequest{Path: shm + "/dst/sub/f"}))
	if err != nil || res.Msg.Entry.Owner != "user" || res.Msg.Entry.Group != "team" {
		t.Errorf("%v %v", res, err)
	}
	if _, err := os.Lstat(src); err == nil {
		t.Error("the source is still there")
	}
	left, err := os.ReadDir(shm)
	if err != nil || len(left) != 1 {
		t.Errorf("left: %v %v", left, err)
	}
}

func TestGuestclientFiles(t *testing.T) {
	a := start(t)
	ctx, dir := t.Context(), openDir(t)
	big := strings.Repeat("x", 3<<20)
	if err := a.client.Write(ctx, "root", dir+"/sub/big", strings.NewReader(big)); err != nil {
		t.Fatal(err)
	}
	r, err := a.client.Read(ctx, "root", dir+"/sub/big")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if data, err := io.ReadAll(r); err != nil || string(data) != big {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	if err := a.client.Move(ctx, "root", dir+"/sub/big", dir+"/sub/moved"); err != nil {
		t.Error(err)
	}
	list, err := a.client.List(ctx, "root", dir, 2)
	if err != nil || len(list) != 2 || !list[0].Mode.IsDir() || list[1].Name != "moved" || list[1].Size != 3<<20 || !list[1].Mode.IsRegular() {
		t.Errorf("%+v %v", list, err)
	}
	if err := a.client.MakeDir(ctx, "root", dir+"/sub"); !tartarus.Is(err, tartarus.Conflict) {
		t.Errorf("%v", err)
	}
	if err := a.client.Remove(ctx, "root", dir+"/sub"); err != nil {
		t.Error(err)
	}
	if _, err := a.client.Stat(ctx, "root", dir+"/sub"); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("%v", err)
	}
	if _, err := a.client.Read(ctx, "root", dir+"/sub"); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("%v", err)
	}
}
