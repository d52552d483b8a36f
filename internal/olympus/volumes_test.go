package olympus_test

import (
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus/api"
)

// volumeRig is a rig with a volume whose content it calls.
type volumeRig struct {
	*rig
	v api.VolumeAndToken
}

func newVolumeRig(t *testing.T) *volumeRig {
	r := newRig(t, nil)
	return &volumeRig{r, decode[api.VolumeAndToken](r.call("developer", "POST", "/volumes", `{"name":"Data"}`).want(201, `"domain":"sb.test:8443"`))}
}

// content calls a route of the volume's content; q is its query, without the path.
func (r *volumeRig) content(method, what, path, q, body string, header ...string) answer {
	r.t.Helper()
	u := "/volumecontent/" + r.v.VolumeID + "/" + what + "?path=" + url.QueryEscape(path)
	if q != "" {
		u += "&" + q
	}
	return r.call("", method, u, body, append(header, "Authorization", "Bearer "+r.v.Token)...)
}

func TestVolumes(t *testing.T) {
	r := newVolumeRig(t)
	for _, ref := range []string{"Data", r.v.VolumeID} {
		r.call("reader", "GET", "/volumes/"+ref, "").want(200, r.v.VolumeID, `"token"`)
		r.call("other", "GET", "/volumes/"+ref, "").want(404)
		r.call("other", "DELETE", "/volumes/"+ref, "").want(404)
	}
	r.call("developer", "POST", "/volumes", `{"name":"Data"}`).want(409)
	r.call("reader", "POST", "/volumes", `{"name":"more"}`).want(403)
	for _, body := range []string{``, `{}`, `{"name":""}`, `{"name":"a/b"}`, `{"name":".."}`, `{"name":"vol_x"}`, `{"name":7}`} {
		r.call("developer", "POST", "/volumes", body).want(400)
	}
	if a := r.call("reader", "GET", "/volumes", "").want(200, `"name":"Data"`); strings.Contains(a.body, "token") {
		t.Errorf("a listing has tokens: %s", a.body)
	}
	r.content("PUT", "file", "/f", "", "x").want(201)
	r.call("developer", "DELETE", "/volumes/Data", "").want(204)
	r.call("developer", "DELETE", "/volumes/"+r.v.VolumeID, "").want(404)
	r.content("GET", "file", "/f", "", "").want(404) // its token outlives it and opens nothing
	r.content("PUT", "file", "/f", "", "x").want(404)
}

func TestVolumeContent(t *testing.T) {
	r := newVolumeRig(t)
	r.content("POST", "dir", "/d/e", "", "").want(404)
	r.content("POST", "dir", "/d/e", "force=true&mode=493&uid=1000", "").want(201, `"type":"directory"`, `"mode":493`, `"uid":1000`)
	r.content("POST", "dir", "/d/e", "force=true", "").want(201)
	r.content("POST", "dir", "/d/e", "", "").want(409)
	r.content("PUT", "file", "/d/f", "mode=384", "content").want(201, `"size":7`, `"mode":384`, `"path":"/d/f"`, `"type":"file"`)
	r.content("PUT", "file", "/no/f", "", "content").want(404)
	r.content("PUT", "file", "/no/f", "force=true", "content").want(201)
	r.content("PUT", "file", "/d/e", "", "x").want(400, "folder")
	r.content("PUT", "file", "/d/f", "", "x", "Content-Encoding", "gzip").want(400, "gzip")
	if a := r.content("GET", "file", "/d/f", "", ""); a.status != 200 || a.body != "content" || a.header.Get("Content-Type") != "application/octet-stream" {
		t.Fatalf("got %d %q %v", a.status, a.body, a.header)
	}
	if a := r.content("GET", "file", "/d/f", "", "", "Range", "bytes=1-3"); a.status != 206 || a.body != "ont" {
		t.Fatalf("got %d %q", a.status, a.body)
	}
	r.content("GET", "file", "/d", "", "").want(400, "folder")
	r.content("GET", "file", "/d/none", "", "").want(404)
	r.content("GET", "dir", "/d", "", "").want(200, `"path":"/d/e"`, `"path":"/d/f"`)
	if a := r.content("GET", "dir", "/", "", "").want(200, `"/d"`); strings.Contains(a.body, "/d/f") {
		t.Errorf("depth 1 goes deeper: %s", a.body)
	}
	r.content("GET", "dir", "/", "depth=2", "").want(200, `"/d/f"`)
	r.content("GET", "dir", "/d/f", "", "").want(404)
	r.content("GET", "path", "/d/f", "", "").want(200, `"name":"f"`)
	r.content("GET", "path", "/", "", "").want(200, `"directory"`)
	r.content("GET", "path", "/none", "", "").want(404)
	r.content("PATCH", "path", "/d/f", "", `{"mode":2541,"gid":5}`).want(200, `"mode":493`, `"gid":5`) // no set-user-id
	r.content("PATCH", "path", "/none", "", `{"mode":384}`).want(404)
	r.content("DELETE", "path", "/", "", "").want(400)
	r.content("DELETE", "path", "/none", "", "").want(404)
	r.content("DELETE", "path", "/d", "", "").want(204)
	r.content("GET", "path", "/d", "", "").want(404)
	for _, bad := range [][5]string{
		{"PATCH", "path", "/no", "", `{"mode":4096}`}, {"PATCH", "path", "/no", "", `{"uid":-1}`}, {"PATCH", "path", "/no", "", `[]`},
		{"POST", "dir", "/x", "mode=x", ""}, {"POST", "dir", "/x", "uid=4294967295", ""}, {"POST", "dir", "/x", "force=perhaps", ""},
		{"GET", "dir", "/", "depth=0", ""}, {"POST", "dir", strings.Repeat("x", 300), "", ""}, {"POST", "dir", "a\x00b", "", ""}, {"POST", "dir", "/", "", ""},
	} {
		r.content(bad[0], bad[1], bad[2], bad[3], bad[4]).want(400)
	}
	r.call("", "GET", "/volumecontent/"+r.v.VolumeID+"/dir", "", "Authorization", "Bearer "+r.v.Token).want(400, "path")
	r.content("PUT", "file", "/big", "", strings.Repeat("x", 2<<20)).want(413, "full") // the rig's volumes hold a megabyte
	r.content("GET", "path", "/big", "", "").want(404)
}

// Over a connection too: a body that breaks off leaves nothing, and the connection serves what comes next.
func TestVolumeUploadBreaksOff(t *testing.T) {
	r := newVolumeRig(t)
	srv := httptest.NewServer(r.Server.Handler())
	defer srv.Close()
	conn := dialRaw(t, srv.Listener.Addr().String())
	if _, err := conn.Write([]byte("PUT /volumecontent/" + r.v.VolumeID + "/file?path=/f HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + r.v.Token + "\r\nContent-Length: 100\r\n\r\nhalf")); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	srv.Close() // waits for the handler
	r.content("GET", "path", "/f", "", "").want(404)
	r.content("GET", "dir", "/", "", "").want(200, "[]")
}
