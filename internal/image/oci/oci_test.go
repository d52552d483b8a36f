package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	goerofs "github.com/erofs/go-erofs"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/image/erofs"
)

func layer(t *testing.T, files ...string) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		path, data, _ := strings.Cut(f, "=")
		if err := w.WriteHeader(&tar.Header{Name: path, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, data)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// sample is an image of two layers, the upper of which changes and removes.
func sample(t *testing.T, arch string) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layer(t, "etc/a=lower", "etc/b=gone", "arch="+arch), layer(t, "etc/a=upper", "etc/.wh.b="))
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	config.Config = v1.Config{Env: []string{"PATH=/bin", "A=b=c"}, User: "app:staff", WorkingDir: "/srv", Entrypoint: []string{"/entry"}, Cmd: []string{"arg"}}
	img, err = mutate.ConfigFile(img, config)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// unpack gives the content of files, "" for those that are not there.
func unpack(t *testing.T, i *Image, files ...string) []string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := erofs.NewWriter(f, erofs.Options{})
	if err := i.AddTo(t.Context(), w, func(int, int) {}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	img, err := goerofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, name := range files {
		b, _ := img.(interface{ ReadFile(string) ([]byte, error) }).ReadFile(name)
		out = append(out, string(b))
	}
	return out
}

func check(t *testing.T, i *Image, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if got := unpack(t, i, "etc/a", "etc/b", "arch"); !slices.Equal(got, []string{"upper", "", runtime.GOARCH}) {
		t.Errorf("unpacked %q", got)
	}
	c := i.Config
	if c.Env["A"] != "b=c" || c.Env["PATH"] != "/bin" || c.User != "app" || c.WorkDir != "/srv" || !slices.Equal(c.Cmd, []string{"/entry", "arg"}) {
		t.Errorf("%+v", c)
	}
	if !strings.HasPrefix(i.Digest, "sha256:") {
		t.Errorf("digest %q", i.Digest)
	}
}

func otherArch() string {
	if runtime.GOARCH == "arm64" {
		return "amd64"
	}
	return "arm64"
}

// index is an image for two processors.
func index(t *testing.T) v1.ImageIndex {
	t.Helper()
	var adds []mutate.IndexAddendum
	for _, arch := range []string{otherArch(), runtime.GOARCH} {
		adds = append(adds, mutate.IndexAddendum{Add: sample(t, arch), Descriptor: v1.Descriptor{
			MediaType: types.DockerManifestSchema2, Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	return mutate.AppendManifests(empty.Index, adds...)
}

func serve(t *testing.T, h http.Handler) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func TestRemote(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	host := serve(t, registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	push := func(path string, write func(name.Reference) error) string {
		t.Helper()
		ref, err := name.ParseReference(host + path)
		if err != nil {
			t.Fatal(err)
		}
		if err := write(ref); err != nil {
			t.Fatal(err)
		}
		return ref.String()
	}
	one := push("/one:v1", func(r name.Reference) error { return remote.Write(r, sample(t, runtime.GOARCH)) })
	img, err := Remote(t.Context(), one)
	check(t, img, err)
	byDigest, err := Remote(t.Context(), host+"/one@"+img.Digest)
	check(t, byDigest, err)
	many := push("/many", func(r name.Reference) error { return remote.WriteIndex(r, index(t)) })
	img, err = Remote(t.Context(), many)
	check(t, img, err)

	other := push("/other", func(r name.Reference) error { return remote.Write(r, sample(t, otherArch())) })
	denied := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		ctx  context.Context
		ref  string
		kind tartarus.Kind
	}{
		{t.Context(), host + "/nosuch", tartarus.NotFound},
		{t.Context(), host + "/UPPER", tartarus.Invalid},
		{t.Context(), "", tartarus.Invalid},
		{t.Context(), other, tartarus.Unsupported},
		{t.Context(), denied + "/x", tartarus.Forbidden},
		{t.Context(), "127.0.0.1:1/x", tartarus.Unavailable},
		{ended, one, tartarus.Internal},
	} {
		if _, err := Remote(c.ctx, c.ref); !tartarus.Is(err, c.kind) {
			t.Errorf("%q: %v, want kind %s", c.ref, err, c.kind)
		}
	}
	if _, err := Remote(ended, one); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context: %v", err)
	}
}

// TestKeychain expects the credentials of docker login to be used, and nothing else.
func TestKeychain(t *testing.T) {
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); r.Method == http.MethodGet && (user != "me" || password != "secret") {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	if _, err := Remote(t.Context(), host+"/x"); !tartarus.Is(err, tartarus.Forbidden) {
		t.Errorf("without credentials: %v", err)
	}
	login := `{"auths":{"` + host + `":{"auth":"bWU6c2VjcmV0"}}}` // me:secret
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(login), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Remote(t.Context(), host+"/x"); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("with credentials, of an image that is not there: %v", err)
	}
}

func TestLayout(t *testing.T) {
	dir := t.TempDir()
	if _, err := layout.Write(dir, index(t)); err != nil {
		t.Fatal(err)
	}
	img, err := Layout(dir)
	check(t, img, err)

	nested := t.TempDir()
	if _, err := layout.Write(nested, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: index(t)})); err != nil {
		t.Fatal(err)
	}
	img, err = Layout(nested)
	check(t, img, err)

	two, none := t.TempDir(), t.TempDir()
	mine := func() mutate.IndexAddendum { return mutate.IndexAddendum{Add: sample(t, runtime.GOARCH)} }
	random, err := random.Image(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := layout.Write(two, mutate.AppendManifests(empty.Index, mine(), mutate.IndexAddendum{Add: random})); err != nil {
		t.Fatal(err)
	}
	if _, err := layout.Write(none, empty.Index); err != nil {
		t.Fatal(err)
	}
	for dir, kind := range map[string]tartarus.Kind{two: tartarus.Invalid, none: tartarus.NotFound, filepath.Join(none, "nosuch"): tartarus.Invalid} {
		if _, err := Layout(dir); !tartarus.Is(err, kind) {
			t.Errorf("%s: %v, want kind %s", dir, err, kind)
		}
	}
}

func TestArchive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "saved.tar")
	tag, err := name.NewTag("app:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(path, tag, sample(t, runtime.GOARCH)); err != nil {
		t.Fatal(err)
	}
	img, err := Archive(path)
	check(t, img, err)
	if err := os.WriteFile(path, []byte("no archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Archive(path); !tartarus.Is(err, tartarus.Invalid) {
		t.Errorf("a file that is no archive: %v", err)
	}
}

// TestDamagedLayer expects a layer with other bytes than the configuration names to be refused.
func TestDamagedLayer(t *testing.T) {
	good := layer(t, "a=good")
	bad, err := layer(t, "a=evil").Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(bad)
	if err != nil {
		t.Fatal(err)
	}
	i := &Image{Name: "damaged", layers: []v1.Layer{swapped{static.NewLayer(data, types.DockerUncompressedLayer), good}}}
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := i.AddTo(t.Context(), erofs.NewWriter(f, erofs.Options{}), func(int, int) {}); !tartarus.Is(err, tartarus.Corrupt) {
		t.Errorf("got %v", err)
	}
	if err := i.AddTo(t.Context(), erofs.NewWriter(f, erofs.Options{MaxBytes: 1}), func(int, int) {}); !tartarus.Is(err, tartarus.TooLarge) {
		t.Errorf("got %v", err)
	}
}

// swapped has the data of one layer and the digest of another.
type swapped struct {
	v1.Layer
	named v1.Layer
}

func (s swapped) DiffID() (v1.Hash, error) { return s.named.DiffID() }
