// Package oci reads container images: from a registry, from a folder in the OCI layout, and from what docker save wrote.
// No layer becomes part of an image unless its bytes have the digest that the image's configuration names.
package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/image/erofs"
	"github.com/tartarus-sandbox/tartarus/internal/image/source"
)

// maxLayers is the most that container engines stack.
const maxLayers = 128

// Image is a container image for Linux on this machine's processor.
type Image struct {
	Name   string // as it was asked for
	Digest string // of its manifest: sha256:HEX
	Config Config
	layers []v1.Layer

	// Of one from a registry: where it is, and what its signatures may be of.
	ref     name.Reference
	digests []v1.Hash
}

// Config is how an image wants to be run.
type Config struct {
	Env     map[string]string
	User    string // without a group
	WorkDir string
	Cmd     []string // entry point, then command
}

func platform() v1.Platform { return v1.Platform{OS: "linux", Architecture: runtime.GOARCH} }

// Remote finds an image in a registry, with the credentials of docker login. Layers are fetched by AddTo.
func Remote(ctx context.Context, reference string) (*Image, error) {
	ref, err := name.ParseReference(reference)
	if err != nil {
		return nil, tartarus.Errorf(tartarus.Invalid, "%.200q is no image reference: %s", reference, err)
	}
	found, err := remote.Get(ref, options(ctx)...)
	if err != nil {
		return nil, registryError(ctx, reference, err)
	}
	img, err := found.Image()
	if err != nil {
		return nil, registryError(ctx, reference, err)
	}
	out, err := read(reference, img)
	if err != nil {
		return nil, err
	}
	manifest, err := img.Digest()
	if err != nil {
		return nil, bad("read image "+reference, err)
	}
	// The index holds its manifests by digest, so that who signs it signs them.
	out.ref, out.digests = ref, slices.Compact([]v1.Hash{found.Digest, manifest})
	return out, nil
}

func options(ctx context.Context) []remote.Option {
	return []remote.Option{
		remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithPlatform(platform()), remote.WithUserAgent("tartarus"),
	}
}

// registryError sorts what a registry answered.
func registryError(ctx context.Context, reference string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("fetch image %s: %w", reference, context.Cause(ctx))
	}
	kind := tartarus.Unavailable
	var answer *transport.Error
	if errors.As(err, &answer) {
		switch answer.StatusCode {
		case http.StatusNotFound:
			kind = tartarus.NotFound
		case http.StatusUnauthorized, http.StatusForbidden:
			kind = tartarus.Forbidden
		case http.StatusTooManyRequests:
			kind = tartarus.Exhausted
		}
	}
	if strings.Contains(err.Error(), "no child with platform") {
		kind = tartarus.NotFound
	}
	return &tartarus.Error{Kind: kind, Message: fmt.Sprintf("fetch image %s: %v", reference, err), Err: err}
}

// Layout opens the image in a folder of the OCI image layout: the only one for this machine's processor.
func Layout(dir string) (*Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, bad("open OCI layout "+dir, err)
	}
	img, err := pick(index, 0)
	if err != nil {
		return nil, fmt.Errorf("open OCI layout %s: %w", dir, err)
	}
	return read(dir, img)
}

// pick finds the one image for our platform, also in an index within the index.
func pick(index v1.ImageIndex, depth int) (v1.Image, error) {
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, bad("read index", err)
	}
	if depth > 3 {
		return nil, tartarus.Errorf(tartarus.Invalid, "its indexes are nested too deeply")
	}
	var found []v1.Image
	for _, d := range manifest.Manifests {
		switch {
		case d.MediaType.IsIndex():
			sub, err := index.ImageIndex(d.Digest)
			if err != nil {
				return nil, bad("read index", err)
			}
			if img, err := pick(sub, depth+1); err == nil {
				found = append(found, img)
			}
		case d.MediaType.IsImage():
			if d.Platform != nil && (d.Platform.OS != "linux" || d.Platform.Architecture != runtime.GOARCH) {
				continue
			}
			img, err := index.Image(d.Digest)
			if err != nil {
				return nil, bad("read manifest", err)
			}
			found = append(found, img)
		}
	}
	switch len(found) {
	case 0:
		return nil, tartarus.Errorf(tartarus.NotFound, "it holds no image for linux/%s", runtime.GOARCH)
	case 1:
		return found[0], nil
	}
	return nil, tartarus.Errorf(tartarus.Invalid, "it holds %d images for linux/%s and should hold one", len(found), runtime.GOARCH)
}

// Archive opens the only image in a file that docker save wrote.
func Archive(path string) (*Image, error) {
	img, err := tarball.ImageFromPath(path, nil)
	if err != nil {
		return nil, bad("open image archive "+path, err)
	}
	return read(path, img)
}

func bad(what string, err error) error {
	return &tartarus.Error{Kind: tartarus.Invalid, Message: what + ": " + err.Error(), Err: err}
}

func read(from string, img v1.Image) (*Image, error) {
	digest, err := img.Digest()
	if err != nil {
		return nil, bad("read image "+from, err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, bad("read configuration of image "+from, err)
	}
	if config.OS != "" && config.OS != "linux" || config.Architecture != "" && config.Architecture != runtime.GOARCH {
		return nil, tartarus.Errorf(tartarus.Unsupported, "image %s is for %s/%s, this machine is linux/%s", from, config.OS, config.Architecture, runtime.GOARCH)
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, bad("read layers of image "+from, err)
	}
	if len(layers) > maxLayers {
		return nil, tartarus.Errorf(tartarus.TooLarge, "image %s has %d layers, more than %d", from, len(layers), maxLayers)
	}
	if len(layers) != len(config.RootFS.DiffIDs) {
		return nil, tartarus.Errorf(tartarus.Corrupt, "image %s has %d layers and names %d", from, len(layers), len(config.RootFS.DiffIDs))
	}
	c := Config{
		Env: map[string]string{}, WorkDir: config.Config.WorkingDir,
		Cmd: append(append([]string{}, config.Config.Entrypoint...), config.Config.Cmd...),
	}
	c.User, _, _ = strings.Cut(config.Config.User, ":")
	for _, entry := range config.Config.Env {
		if key, value, ok := strings.Cut(entry, "="); ok && key != "" {
			c.Env[key] = value
		}
	}
	return &Image{Name: from, Digest: digest.String(), Config: c, layers: layers}, nil
}

// AddTo unpacks all layers into w. Progress is called before each with its number, from 0, and their count.
func (i *Image) AddTo(ctx context.Context, w *erofs.Writer, progress func(layer, of int)) error {
	for n, layer := range i.layers {
		progress(n, len(i.layers))
		if err := addLayer(ctx, w, layer); err != nil {
			return fmt.Errorf("layer %d of image %s: %w", n+1, i.Name, err)
		}
	}
	return nil
}

func addLayer(ctx context.Context, w *erofs.Writer, layer v1.Layer) error {
	want, err := layer.DiffID()
	if err != nil {
		return bad("read digest", err)
	}
	blob, err := layer.Uncompressed()
	if err != nil {
		return registryError(ctx, "layer", err)
	}
	defer blob.Close()
	stream, err := source.Reader(ctx, blob)
	if err != nil {
		return err
	}
	defer stream.Close()
	h := sha256.New()
	all := io.TeeReader(stream, h)
	if err := source.AddLayer(w, all); err != nil {
		return err
	}
	// A tar reader stops at the end mark; the digest goes on to the end of the stream.
	if _, err := io.Copy(io.Discard, all); err != nil {
		return bad("read layer", err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); want.Algorithm != "sha256" || got != want.Hex {
		return tartarus.Errorf(tartarus.Corrupt, "it has the digest sha256:%s and should have %s", got, want)
	}
	return nil
}
