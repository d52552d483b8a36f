package oci

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/tartarus-sandbox/tartarus"
)

// How cosign keeps signatures: beside an image, under a tag made of its digest, is an image each of whose layers is a text that was signed,
// annotated with its signature. (SIGNATURE_SPEC.md of sigstore/cosign; the text is that of "simple signing".)
const (
	signatureText       = types.MediaType("application/vnd.dev.cosign.simplesigning.v1+json")
	signatureAnnotation = "dev.cosignproject.cosign/signature"
	signatureType       = "cosign container image signature"
)

// Bounds of what anybody may have put there who can write to the registry.
const (
	maxSignatures     = 64
	maxSignatureText  = 64 << 10
	maxSignatureBytes = 1 << 10 // of base64; ECDSA over P-256 has 96
)

// Key is a public key by which images are signed.
type Key struct {
	ID     string // SHA-256 over the key in DER, in hexadecimal digits
	public *ecdsa.PublicKey
}

// ParseKey reads what cosign writes as cosign.pub: an ECDSA key over P-256, in PEM.
func ParseKey(text []byte) (Key, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" {
		return Key{}, tartarus.Errorf(tartarus.Invalid, "it holds no PUBLIC KEY in PEM")
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return Key{}, tartarus.Errorf(tartarus.Invalid, "its public key cannot be read: %w", err)
	}
	public, ok := parsed.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return Key{}, tartarus.Errorf(tartarus.Invalid, "its public key is not of ECDSA over P-256")
	}
	sum := sha256.Sum256(block.Bytes)
	return Key{ID: hex.EncodeToString(sum[:]), public: public}, nil
}

// Signed is what is known of an image's signatures.
type Signed struct {
	By  []string // ids of the keys, in order; none when nobody known has signed it
	Why string   // for people, when there is none
}

// Signed looks for signatures of an image from a registry by any of the keys, over the digest that its reference stands for or over that of its
// manifest. An error means that it is not known; an image from elsewhere has none.
func (i *Image) Signed(ctx context.Context, keys []Key) (out Signed, err error) {
	if i.ref == nil {
		return Signed{Why: "only images from a registry have signatures"}, nil
	}
	seen := 0
	wrong := ""
	for _, digest := range i.digests {
		texts, err := i.signatures(ctx, digest)
		if err != nil {
			return Signed{}, err
		}
		seen += len(texts)
		for _, t := range texts {
			by, problem := t.by(keys, digest)
			if problem != "" {
				wrong = problem
			}
			if by != "" && !slices.Contains(out.By, by) {
				out.By = append(out.By, by)
			}
		}
	}
	slices.Sort(out.By)
	switch {
	case len(out.By) > 0:
	case wrong != "":
		out.Why = wrong
	case seen == 0:
		out.Why = "its registry has no signature of it"
	default:
		out.Why = fmt.Sprintf("its registry has %d signatures of it, none by a key that is known here", seen)
	}
	return out, nil
}

// signature is one text with what it is signed by.
type signature struct{ text, sign []byte }

// signatures fetches those of one digest. What is not a signature is left out.
func (i *Image) signatures(ctx context.Context, digest v1.Hash) (out []signature, err error) {
	tag := i.ref.Context().Tag(digest.Algorithm + "-" + digest.Hex + ".sig")
	img, err := remote.Image(tag, options(ctx)...)
	if err != nil {
		if err = registryError(ctx, tag.String(), err); tartarus.Is(err, tartarus.NotFound) {
			return nil, nil
		}
		return nil, err
	}
	manifest, err := img.Manifest()
	if err != nil {
		return nil, bad("read signatures "+tag.String(), err)
	}
	if len(manifest.Layers) > maxSignatures {
		return nil, tartarus.Errorf(tartarus.TooLarge, "%s has %d signatures, more than %d", tag, len(manifest.Layers), maxSignatures)
	}
	for _, layer := range manifest.Layers {
		encoded := layer.Annotations[signatureAnnotation]
		sign, err := base64.StdEncoding.DecodeString(encoded)
		if layer.MediaType != signatureText || layer.Size > maxSignatureText || len(encoded) > maxSignatureBytes || err != nil || len(sign) == 0 {
			continue
		}
		text, err := readText(img, layer.Digest)
		if err != nil {
			return nil, registryError(ctx, tag.String(), err)
		}
		out = append(out, signature{text, sign})
	}
	return out, nil
}

func readText(img v1.Image, digest v1.Hash) ([]byte, error) {
	layer, err := img.LayerByDigest(digest)
	if err != nil {
		return nil, err
	}
	blob, err := layer.Compressed() // as it is: the text itself
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	return io.ReadAll(io.LimitReader(blob, maxSignatureText))
}

// by gives the key that signed, if what it signed is this digest. The text means nothing before its signature is known to be good.
func (s signature) by(keys []Key, digest v1.Hash) (id, problem string) {
	sum := sha256.Sum256(s.text)
	at := slices.IndexFunc(keys, func(k Key) bool { return ecdsa.VerifyASN1(k.public, sum[:], s.sign) })
	if at < 0 {
		return "", ""
	}
	var said struct {
		Critical struct {
			Image struct {
				Digest string `json:"docker-manifest-digest"`
			} `json:"image"`
			Type string `json:"type"`
		} `json:"critical"`
	}
	if err := json.Unmarshal(s.text, &said); err != nil || said.Critical.Type != signatureType {
		return "", "its registry has a signed text for it that is no signature of an image"
	}
	if said.Critical.Image.Digest != digest.String() {
		return "", "its registry has a signature for it that is of another image, " + clipped(said.Critical.Image.Digest)
	}
	return keys[at].ID, ""
}

func clipped(s string) string {
	const longest = 80 // a digest has 71
	return fmt.Sprintf("%q", s[:min(len(s), longest)])
}
