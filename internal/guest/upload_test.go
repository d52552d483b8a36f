package guest_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"connectrpc.com/connect"

	filesystempb "github.com/tartarus-sandbox/tartarus/api/gen/filesystem"
)

func TestUploadMultipart(t *testing.T) {
	needRoot(t)
	a := start(t)
	body, kind := form(t, "a", "one", "deep/er/b", "two", "~/c", "", a.home+"/d", "four")
	status, _, answer := a.do(t, "POST", "/files", body, "Content-Type", kind)
	want := fmt.Sprintf(`[{"path":"%[1]s/a","name":"a","type":"file"},{"path":"%[1]s/deep/er/b","name":"b","type":"file"},{"path":"%[1]s/c","name":"c","type":"file"},{"path":"%[1]s/d","name":"d","type":"file"}]`, a.home)
	if status != 200 || answer != want {
		t.Fatalf("%d %s", status, answer)
	}
	if read(t, a.home+"/a") != "one" || read(t, a.home+"/deep/er/b") != "two" || read(t, a.home+"/c") != "" {
		t.Error("contents differ")
	}
	for _, path := range []string{"a", "deep", "deep/er", "deep/er/b"} {
		res, err := a.fs.Stat(t.Context(), connect.NewRequest(&filesystempb.StatRequest{Path: path}))
		if err != nil || res.Msg.Entry.Owner != "user" || res.Msg.Entry.Group != "user" {
			t.Errorf("%s: %v, %v", path, res, err)
		}
	}
	// The query's path wins over the part's name.
	body, kind = form(t, "ignored", "x")
	if status, _, answer = a.do(t, "POST", q("path", "named"), body, "Content-Type", kind); status != 200 || read(t, a.home+"/named") != "x" {
		t.Errorf("%d %s", status, answer)
	}
	body, kind = form(t, "twice", "1", "./twice", "2")
	if status, _, answer = a.do(t, "POST", "/files", body, "Content-Type", kind); status != 400 || !strings.Contains(answer, "same path") {
		t.Errorf("duplicates: %d %s", status, answer)
	}
	if read(t, a.home+"/twice") != "1" {
		t.Error("the first of two is not written")
	}
}

func TestUploadOctetStream(t *testing.T) {
	a := start(t)
	dir := openDir(t)
	if status, _, answer := a.do(t, "POST", q("path", dir+"/new/f", "username", "root"), strings.NewReader("plain"), "Content-Type", "application/octet-stream"); status != 200 || read(t, dir+"/new/f") != "plain" {
		t.Errorf("%d %s", status, answer)
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	io.WriteString(w, "zipped")
	w.Close()
	if status, _, answer := a.do(t, "POST", q("path", dir+"/g", "username", "root"), &z, "Content-Type", "application/octet-stream", "Content-Encoding", "gzip"); status != 200 || read(t, dir+"/g") != "zipped" {
		t.Errorf("%d %s", status, answer)
	}
	// A file that exists keeps its mode, and is cut to the new length.
	if err := os.Chmod(dir+"/g", 0o751); err != nil {
		t.Fatal(err)
	}
	if status, _, _ := a.do(t, "POST", q("path", dir+"/g", "username", "root"), strings.NewReader("z"), "Content-Type", "application/octet-stream"); status != 200 {
		t.Errorf("overwrite: %d", status)
	}
	if st, err := os.Stat(dir + "/g"); err != nil || st.Mode().Perm() != 0o751 || st.Size() != 1 {
		t.Errorf("%v %v", st, err)
	}
}

func TestUploadRefuses(t *testing.T) {
	a := start(t)
	dir := openDir(t)
	octet := []string{"Content-Type", "application/octet-stream"}
	file := dir + "/file"
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path   string
		body   string
		header []string
		status int
	}{
		"no path":       {"/files?username=root", "x", octet, 400},
		"folder":        {q("path", dir, "username", "root"), "x", octet, 400},
		"below a file":  {q("path", file+"/x", "username", "root"), "x", octet, 400},
		"zero byte":     {q("path", dir+"/a\x00b", "username", "root"), "x", octet, 400},
		"long name":     {q("path", dir+"/"+strings.Repeat("x", 300), "username", "root"), "x", octet, 400},
		"other home":    {q("path", "~nobody/x", "username", "root"), "x", octet, 400},
		"bad user":      {q("path", dir+"/x", "username", "nobody123"), "x", octet, 401},
		"no type":       {q("path", dir+"/x", "username", "root"), "x", nil, 400},
		"json":          {q("path", dir+"/x", "username", "root"), "{}", []string{"Content-Type", "application/json"}, 400},
		"no boundary":   {q("path", dir+"/x", "username", "root"), "x", []string{"Content-Type", "multipart/form-data"}, 400},
		"broken form":   {q("path", dir+"/x", "username", "root"), "garbage", []string{"Content-Type", "multipart/form-data; boundary=b"}, 400},
		"not gzip":      {q("path", dir+"/x", "username", "root"), "plain", append([]string{"Content-Encoding", "gzip"}, octet...), 400},
		"odd encoding":  {q("path", dir+"/x", "username", "root"), "plain", append([]string{"Content-Encoding", "br"}, octet...), 400},
		"full disk":     {q("path", "/dev/full", "username", "root"), "x", octet, 507},
		"metadata":      {q("path", dir+"/x", "username", "root"), "x", append([]string{"X-Metadata-K", "tab\there"}, octet...), 400},
		"long metadata": {q("path", dir+"/x", "username", "root"), "x", append([]string{"X-Metadata-K", strings.Repeat("v", 4096)}, octet...), 400},
	} {
		status, _, answer := a.do(t, "POST", c.path, strings.NewReader(c.body), c.header...)
		var e struct {
			Code    int
			Message string
		}
		if status != c.status || json.Unmarshal([]byte(answer), &e) != nil || e.Code != status || e.Message == "" {
			t.Errorf("%s: %d %s", name, status, answer)
		}
	}
	if _, err := os.Stat(dir + "/x"); err == nil {
		t.Error("a refused upload left a file")
	}
}
