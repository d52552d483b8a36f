// Package ocitest is a container registry on loopback for tests, and signs images in it as cosign does: also wrongly, as whoever can write to a
// registry could.
package ocitest

import (
	"archive/tar"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Registry is a server until the test ends.
type Registry struct {
	Host string
	t    testing.TB
}

// New starts a registry.
func New(t testing.TB) *Registry {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	return &Registry{Host: strings.TrimPrefix(server.URL, "http://"), t: t}
}

func (r *Registry) ref(reference string) name.Reference {
	r.t.Helper()
	ref, err := name.ParseReference(r.Host + "/" + reference)
	if err != nil {
		r.t.Fatal(err)
	}
	return ref
}

// Push makes an image for this machine with one file that holds text, and gives its digest.
func (r *Registry) Push(reference, text string) v1.Hash {
	r.t.Helper()
	img := Image(r.t, text)
	if err := remote.Write(r.ref(reference), img); err != nil {
		r.t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		r.t.Fatal(err)
	}
	return digest
}

// PushIndex makes an index with one such image, and gives the digests of both.
func (r *Registry) PushIndex(reference, text string) (index, image v1.Hash) {
	r.t.Helper()
	img := Image(r.t, text)
	all := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}})
	err := remote.WriteIndex(r.ref(reference), all)
	if err == nil {
		index, err = all.Digest()
	}
	if err == nil {
		image, err = img.Digest()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return index, image
}

// Image is one with one file, for this machine.
func Image(t testing.TB, text string) v1.Image {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: "text", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))})
	if err == nil {
		_, err = io.WriteString(w, text)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err == nil {
		img, err = mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: diffIDs(t, img)})
	}
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func diffIDs(t testing.TB, img v1.Image) v1.RootFS {
	t.Helper()
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return config.RootFS
}

// Key is a pair for signing.
type Key struct {
	private *ecdsa.PrivateKey
	t       testing.TB
}

// NewKey makes one.
func NewKey(t testing.TB) *Key {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &Key{private, t}
}

// PEM is the public key as cosign.pub has it.
func (k *Key) PEM() []byte {
	k.t.Helper()
	der, err := x509.MarshalPKIXPublicKey(&k.private.PublicKey)
	if err != nil {
		k.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// File is a file with the public key.
func (k *Key) File() string {
	k.t.Helper()
	path := filepath.Join(k.t.TempDir(), "cosign.pub")
	if err := os.WriteFile(path, k.PEM(), 0o600); err != nil {
		k.t.Fatal(err)
	}
	return path
}

// Text is what is signed to say that an image is good.
func Text(digest v1.Hash) []byte {
	text, err := json.Marshal(map[string]any{
		"critical": map[string]any{
			"identity": map[string]string{"docker-reference": "example.com/app"},
			"image":    map[string]string{"docker-manifest-digest": digest.String()},
			"type":     "cosign container image signature",
		},
		"optional": nil,
	})
	if err != nil {
		panic(err) // of texts alone
	}
	return text
}

// Signature is one to be stored: a text and what is said to be its signature.
type Signature struct{ Text, Sign []byte }

// Sign signs a text.
func (k *Key) Sign(text []byte) Signature {
	k.t.Helper()
	sum := sha256.Sum256(text)
	sign, err := ecdsa.SignASN1(rand.Reader, k.private, sum[:])
	if err != nil {
		k.t.Fatal(err)
	}
	return Signature{text, sign}
}

// Store puts signatures where those of an image of a repository are looked for, in the place of those that were there.
func (r *Registry) Store(repository string, digest v1.Hash, signatures ...Signature) {
	r.t.Helper()
	img := v1.Image(mutate.MediaType(empty.Image, types.OCIManifestSchema1))
	for _, s := range signatures {
		var err error
		img, err = mutate.Append(img, mutate.Addendum{
			Layer:       static.NewLayer(s.Text, "application/vnd.dev.cosign.simplesigning.v1+json"),
			Annotations: map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(s.Sign)},
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
	if err := remote.Write(r.ref(repository+":"+digest.Algorithm+"-"+digest.Hex+".sig"), img); err != nil {
		r.t.Fatal(err)
	}
}
