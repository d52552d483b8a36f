package oci

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/image/oci/ocitest"
)

func keyOf(t *testing.T, k *ocitest.Key) Key {
	t.Helper()
	parsed, err := ParseKey(k.PEM())
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// An image counts as signed by a key only when that key signed a text that names its very digest.
func TestSigned(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	r := ocitest.New(t)
	release, nightly, stranger := ocitest.NewKey(t), ocitest.NewKey(t), ocitest.NewKey(t)
	known := []Key{keyOf(t, release), keyOf(t, nightly)}
	other := r.Push("app:other", "another")
	flip := func(s ocitest.Signature) ocitest.Signature {
		s.Sign = bytes.Clone(s.Sign)
		s.Sign[len(s.Sign)-1] ^= 1
		return s
	}
	type store = func(digest v1.Hash) []ocitest.Signature
	for name, tt := range map[string]struct {
		store store
		by    []Key
		why   string
	}{
		"signed": {func(d v1.Hash) []ocitest.Signature { return []ocitest.Signature{release.Sign(ocitest.Text(d))} }, known[:1], ""},
		"by two, and by a stranger": {func(d v1.Hash) []ocitest.Signature {
			return []ocitest.Signature{stranger.Sign(ocitest.Text(d)), release.Sign(ocitest.Text(d)), nightly.Sign(ocitest.Text(d)), nightly.Sign(ocitest.Text(d))}
		}, known, ""},
		"no signature":     {nil, nil, "has no signature"},
		"an empty list":    {func(v1.Hash) []ocitest.Signature { return nil }, nil, "has no signature"},
		"wrong key":        {func(d v1.Hash) []ocitest.Signature { return []ocitest.Signature{stranger.Sign(ocitest.Text(d))} }, nil, "none by a key that is known"},
		"of another image": {func(v1.Hash) []ocitest.Signature { return []ocitest.Signature{release.Sign(ocitest.Text(other))} }, nil, "of another image"},
		"of something else": {func(v1.Hash) []ocitest.Signature {
			return []ocitest.Signature{release.Sign([]byte(`{"critical":{"type":"atomic"}}`))}
		}, nil, "no signature of an image"},
		"no JSON": {func(v1.Hash) []ocitest.Signature { return []ocitest.Signature{release.Sign([]byte("yes"))} }, nil, "no signature of an image"},
		"changed": {func(d v1.Hash) []ocitest.Signature { return []ocitest.Signature{flip(release.Sign(ocitest.Text(d)))} }, nil, "none by a key"},
		"another text's": {func(d v1.Hash) []ocitest.Signature {
			return []ocitest.Signature{{Text: ocitest.Text(d), Sign: release.Sign(ocitest.Text(other)).Sign}}
		}, nil, "none by a key"},
		"too large to be one": {func(d v1.Hash) []ocitest.Signature {
			return []ocitest.Signature{release.Sign(append(ocitest.Text(d), bytes.Repeat([]byte(" "), maxSignatureText)...))}
		}, nil, "has no signature"},
		"empty": {func(d v1.Hash) []ocitest.Signature { return []ocitest.Signature{{Text: ocitest.Text(d)}} }, nil, "has no signature"},
	} {
		t.Run(name, func(t *testing.T) {
			digest := r.Push("app:v1", name)
			if tt.store != nil {
				r.Store("app", digest, tt.store(digest)...)
			}
			img, err := Remote(t.Context(), r.Host+"/app:v1")
			if err != nil {
				t.Fatal(err)
			}
			got, err := img.Signed(t.Context(), known)
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]bool{}
			for _, k := range tt.by {
				want[k.ID] = true
			}
			if len(got.By) != len(want) || !strings.Contains(got.Why, tt.why) || (got.Why == "") != (tt.why == "") {
				t.Fatalf("got %+v", got)
			}
			for _, id := range got.By {
				if !want[id] {
					t.Errorf("signed by %s", id)
				}
			}
		})
	}
}

// Who signs an index signs what is in it, and who signs a manifest signs it wherever it is found.
func TestSignedIndex(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	r, k := ocitest.New(t), ocitest.NewKey(t)
	keys := []Key{keyOf(t, k)}
	for what, pick := range map[string]func(index, image v1.Hash) v1.Hash{
		"index": func(index, _ v1.Hash) v1.Hash { return index }, "image": func(_, image v1.Hash) v1.Hash { return image },
	} {
		index, image := r.PushIndex("many:v1", what)
		if img, err := Remote(t.Context(), r.Host+"/many:v1"); err != nil {
			t.Fatal(err)
		} else if got, err := img.Signed(t.Context(), keys); err != nil || len(got.By) > 0 {
			t.Fatalf("not signed yet: %+v %v", got, err)
		}
		digest := pick(index, image)
		r.Store("many", digest, k.Sign(ocitest.Text(digest)))
		for _, ref := range []string{"many:v1", "many@" + index.String()} {
			img, err := Remote(t.Context(), r.Host+"/"+ref)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := img.Signed(t.Context(), keys); err != nil || len(got.By) != 1 {
				t.Errorf("signed %s, as %s: %+v %v", what, ref, got, err)
			}
		}
	}
}

// A registry that does not say whether there is a signature leaves it unknown, which is not the same as none.
func TestSignaturesUnknown(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	r := ocitest.New(t)
	r.Push("app:v1", "x")
	img, err := Remote(t.Context(), r.Host+"/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	broken := serve(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if strings.HasSuffix(q.URL.Path, ".sig") {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	elsewhere, err := Remote(t.Context(), r.Host+"/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.ParseReference(broken + "/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	elsewhere.ref = tag
	if got, err := elsewhere.Signed(t.Context(), nil); !tartarus.Is(err, tartarus.Forbidden) {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err := img.Signed(t.Context(), nil); err != nil || got.Why == "" {
		t.Errorf("without any keys: %+v %v", got, err)
	}
	if got, err := (&Image{}).Signed(t.Context(), nil); err != nil || !strings.Contains(got.Why, "registry") {
		t.Errorf("of a file: %+v %v", got, err)
	}
}

func TestBadKeys(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&p384.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"nothing": nil, "no PEM": []byte("key"), "a private key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		"another curve": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), "damaged": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der[:20]}),
	} {
		if k, err := ParseKey(text); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("%s: %+v, %v", name, k, err)
		}
	}
}
