// Package s3 keeps blobs in a bucket of any object store that speaks S3. A blob appears when its upload is complete, under a SHA-256
// checksum that the server has compared; large ones go up in parts, with memory that does not grow with them.
package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager"
	tmtypes "github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager/types"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
)

// Config says which bucket, and who asks. It has a secret and is never logged: its String and LogValue leave the secret out.
type Config struct {
	Endpoint  string // URL of the server; empty is Amazon's own for the region
	Bucket    string // must exist
	Region    string // empty: us-east-1, which servers without regions expect
	AccessKey string
	SecretKey string
	PathStyle bool   // the bucket in the path rather than in the host name: what most servers but Amazon's need
	Prefix    string // before every name; empty, or ends with /
}

// String names the bucket, without the secret.
func (c Config) String() string { return c.Endpoint + "/" + c.Bucket + "/" + c.Prefix }

// LogValue keeps the secret out of structured logs.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Validate reports what is wrong.
func (c Config) Validate() error {
	switch {
	case c.Bucket == "":
		return tartarus.Errorf(tartarus.Invalid, "an object store needs a bucket")
	case c.AccessKey == "" || c.SecretKey == "":
		return tartarus.Errorf(tartarus.Invalid, "an object store needs an access key and its secret key")
	case c.Endpoint == "":
		return nil
	}
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil {
		return tartarus.Errorf(tartarus.Invalid, "the object store's endpoint must be a URL such as https://s3.example.com")
	}
	return nil
}

const (
	// partSize and inFlight bound the memory of one upload: 32 MB. 10,000 parts of 8 MB are a blob of 80 GB; no blob of ours is over 16 MB.
	partSize = 8 << 20
	inFlight = 4
	// attempts covers a server that restarts: the waits between them grow to 20 s.
	attempts = 5
	// requestTime bounds waiting for the first byte of an answer.
	requestTime = 60 * time.Second
	// abortTime bounds taking back the parts of an upload that failed.
	abortTime = 20 * time.Second
)

// Store is a bucket.
type Store struct {
	cfg    Config
	client *awss3.Client
	up     *transfermanager.Client
	http   *http.Transport
}

var (
	_ snapshot.Blobs  = (*Store)(nil)
	_ snapshot.Linker = (*Store)(nil)
)

// New makes a client. It asks nothing of the server yet.
func New(c Config) (*Store, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Region == "" {
		c.Region = "us-east-1"
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second,
		ResponseHeaderTimeout: requestTime, TLSHandshakeTimeout: 10 * time.Second, ForceAttemptHTTP2: true,
	}
	client := awss3.New(awss3.Options{
		Region: c.Region, UsePathStyle: c.PathStyle, HTTPClient: &http.Client{Transport: transport},
		Credentials:                credentials.NewStaticCredentialsProvider(c.AccessKey, c.SecretKey, ""),
		Retryer:                    retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts = attempts }),
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenRequired,
		DisableLogOutputChecksumValidationSkipped: true,
	}, func(o *awss3.Options) {
		if c.Endpoint != "" {
			o.BaseEndpoint = aws.String(c.Endpoint)
		}
	})
	up := transfermanager.New(client, func(o *transfermanager.Options) {
		o.PartSizeBytes, o.MultipartUploadThreshold, o.Concurrency, o.FailTimeout = partSize, 2*partSize, inFlight, abortTime
		o.ChecksumAlgorithm = tmtypes.ChecksumAlgorithmSha256
	})
	return &Store{cfg: c, client: client, up: up, http: transport}, nil
}

// Close lets connections go.
func (s *Store) Close() error {
	s.http.CloseIdleConnections()
	return nil
}

func (s *Store) key(name string) *string { return aws.String(s.cfg.Prefix + name) }

// Put implements snapshot.Blobs.
func (s *Store) Put(ctx context.Context, name string, r io.Reader) error {
	_, err := s.up.UploadObject(ctx, &transfermanager.UploadObjectInput{
		Bucket: aws.String(s.cfg.Bucket), Key: s.key(name), Body: r, ChecksumAlgorithm: tmtypes.ChecksumAlgorithmSha256,
	})
	return explain("store", name, err)
}

// Get implements snapshot.Blobs.
func (s *Store) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	out, err := s.client.GetObject(ctx, &awss3.GetObjectInput{Bucket: aws.String(s.cfg.Bucket), Key: s.key(name)})
	if err != nil {
		return nil, explain("read", name, err)
	}
	return out.Body, nil // HTTP's own content length makes a short body an error
}

// Link implements snapshot.Linker.
func (s *Store) Link(ctx context.Context, name string, d time.Duration) (string, error) {
	in := &awss3.GetObjectInput{Bucket: aws.String(s.cfg.Bucket), Key: s.key(name)}
	out, err := awss3.NewPresignClient(s.client).PresignGetObject(ctx, in, awss3.WithPresignExpires(d))
	if err != nil {
		return "", explain("link to", name, err)
	}
	return out.URL, nil
}

// Head implements snapshot.Blobs.
func (s *Store) Head(ctx context.Context, name string) (snapshot.Blob, error) {
	out, err := s.client.HeadObject(ctx, &awss3.HeadObjectInput{Bucket: aws.String(s.cfg.Bucket), Key: s.key(name)})
	if err != nil {
		return snapshot.Blob{}, explain("look at", name, err)
	}
	return snapshot.Blob{Name: name, Size: aws.ToInt64(out.ContentLength), Modified: aws.ToTime(out.LastModified)}, nil
}

// Delete implements snapshot.Blobs.
func (s *Store) Delete(ctx context.Context, name string) error {
	_, err := s.client.DeleteObject(ctx, &awss3.DeleteObjectInput{Bucket: aws.String(s.cfg.Bucket), Key: s.key(name)})
	if err = explain("delete", name, err); tartarus.Is(err, tartarus.NotFound) {
		return nil
	}
	return err
}

// List implements snapshot.Blobs.
func (s *Store) List(ctx context.Context, prefix string, each func(snapshot.Blob) error) error {
	pages := awss3.NewListObjectsV2Paginator(s.client, &awss3.ListObjectsV2Input{Bucket: aws.String(s.cfg.Bucket), Prefix: s.key(prefix)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return explain("list", prefix, err)
		}
		for _, o := range page.Contents {
			name := aws.ToString(o.Key)[len(s.cfg.Prefix):]
			if err := each(snapshot.Blob{Name: name, Size: aws.ToInt64(o.Size), Modified: aws.ToTime(o.LastModified)}); err != nil {
				return err
			}
		}
	}
	return nil
}

// explain gives an error of the client a kind. Neither its text nor its chain carries credentials: requests are signed, not named.
func explain(verb, name string, err error) error {
	if err == nil {
		return nil
	}
	var (
		noKey    *types.NoSuchKey
		notFound *types.NotFound
		api      smithy.APIError
	)
	switch {
	case errors.As(err, &noKey), errors.As(err, &notFound):
		return tartarus.Errorf(tartarus.NotFound, "there is no blob %s", name)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s blob %s: %w", verb, name, err)
	case errors.As(err, &api) && api.ErrorFault() != smithy.FaultServer:
		if code := api.ErrorCode(); code == "NotFound" || code == "NoSuchKey" {
			return tartarus.Errorf(tartarus.NotFound, "there is no blob %s", name)
		}
		return tartarus.Errorf(tartarus.Internal, "%s blob %s: the object store refused (%s): %w", verb, name, api.ErrorCode(), err)
	}
	return tartarus.Errorf(tartarus.Unavailable, "%s blob %s: %w", verb, name, err)
}
