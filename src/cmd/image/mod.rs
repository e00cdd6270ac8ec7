//! `kite image`: the images of containers that are ready to run, and how they come and go.

mod report;

use std::collections::BTreeSet;
use std::time::Duration;

use clap::builder::ValueParser;
use clap::{Args, Subcommand};
use indicatif::HumanBytes;

use crate::backend::image::cache::{Cache, limit};
use crate::backend::image::obtain::{self, Options};
use crate::host::exit_code::DONE;
use crate::host::messages::{print, printable};
use crate::spec::number::bytes;
use report::{Details, Line};

/// What `kite image --help` ends with.
pub const HELP: &str = "\
An IMAGE is, by what is there: a folder with an OCI layout, DIR[:TAG]; a tar of one, or one that `docker save` or
`podman save` wrote, FILE[:TAG]; or else a name in a registry, [HOST[:PORT]/]NAME[:TAG|@sha256:...], docker.io's if it
has no host. What is in the cache may also be called by the beginning of a digest.

Images are in $XDG_CACHE_HOME/kite/images, or ~/.cache/kite/images, each as one file system that machines map. They may
take 10G together, or what $KITE_IMAGE_LIMIT says: the least recently used go first, and none that a machine has.

Credentials are those of podman and docker: $REGISTRY_AUTH_FILE, containers/auth.json in $XDG_RUNTIME_DIR or ~/.config,
and ~/.docker/config.json, with the programs docker-credential-NAME that they name. Proxies are those of $HTTPS_PROXY,
$HTTP_PROXY and $NO_PROXY, certificates the host's, or those of $SSL_CERT_FILE.

Exit status: 0, or 125 if something went wrong.

Examples:
  kite image pull debian:12                    from docker.io
  kite image inspect images/debian.tar         what an archive says of itself
  kite image list
  kite image remove debian:12
  kite image prune --limit 2G";
const LIST_EXAMPLES: &str = "\
Examples:
  kite image list
  kite image list --json | jq -r '.images[] | select(.in_use) | .reference'";
const INSPECT_EXAMPLES: &str = "\
Examples:
  kite image inspect debian:12                 from the cache, or else from docker.io
  kite image inspect layout/:stable            a folder with an OCI layout
  kite image inspect --json saved.tar | jq .config.config.Env";
const PULL_EXAMPLES: &str = "\
Examples:
  kite image pull debian:12 quay.io/podman/stable
  kite image pull saved.tar                    ready it before the first run
  kite image pull --insecure-registry registry.lan:5000/team/app";
const REMOVE_EXAMPLES: &str = "\
Examples:
  kite image remove debian:12
  kite image remove 6e48cd2e261c               by the beginning of a digest";
const PRUNE_EXAMPLES: &str = "\
Examples:
  kite image prune                             down to the limit
  kite image prune --limit 2G
  kite image prune --all";

/// What to do with images.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the images that are there
    #[command(after_help = LIST_EXAMPLES)]
    List {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Show what an image says of itself, without getting its layers
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect {
        /// Which.
        #[command(flatten)]
        image: Image,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Get images, also if there are older ones of the same names
    #[command(after_help = PULL_EXAMPLES)]
    Pull {
        /// The images
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,
        /// From where.
        #[command(flatten)]
        registry: Registry,
    },
    /// Remove images
    #[command(after_help = REMOVE_EXAMPLES)]
    Remove {
        /// The images
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,
    },
    /// Remove what is left of images that were not got to their end, and the least recently used images beyond the limit
    #[command(after_help = PRUNE_EXAMPLES)]
    Prune {
        /// Remove all images but those that machines have
        #[arg(long, conflicts_with = "limit")]
        all: bool,
        /// How much the images may take that stay, such as 2G [default: $KITE_IMAGE_LIMIT, else 10G]
        #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = ValueParser::new(bytes))]
        limit: Option<u64>,
        /// Print JSON instead of a line
        #[arg(long)]
        json: bool,
    },
}

/// An image that the user names.
#[derive(Args, Debug)]
pub struct Image {
    /// The image
    #[arg(value_name = "IMAGE")]
    name: String,
    #[command(flatten)]
    registry: Registry,
}

/// How registries are trusted.
#[derive(Args, Clone, Copy, Debug)]
pub struct Registry {
    /// Trust a registry without TLS, or with any certificate; one on this machine may do without TLS anyway
    #[arg(long)]
    insecure_registry: bool,
}

/// Does it. Returns the exit status.
///
/// # Errors
/// An image is not there or cannot be got, the cache cannot be used, or the report cannot be written.
pub fn run(command: &Command) -> anyhow::Result<u8> {
    let cache = Cache::open()?;
    match command {
        Command::List { json } => print(report::list(&lines(&cache)?, *json)?, "the report")?,
        Command::Inspect { image, json } => {
            let record = obtain::look_at(&cache, &image.name, image.registry.insecure_registry)?;
            print(report::details(&Details::of(&record, &cache)?, *json)?, "the report")?;
        }
        Command::Pull { images, registry } => {
            let options = Options {
                is_insecure: registry.insecure_registry,
                is_refreshed: true,
                is_shown: true,
                limit: limit()?,
            };
            for image in images {
                let record = obtain::obtain(&cache, image, &options)?.record;
                let digest = record.manifest.as_ref().unwrap_or(&record.config_digest);
                print(format!("{}  {digest}\n", printable(&record.reference)), "the report")?;
            }
        }
        Command::Remove { images } => {
            for image in images {
                let record = cache.called(image)?;
                let freed = HumanBytes(cache.remove(&record)?.bytes);
                print(format!("removed {}, freed {freed}\n", printable(&record.reference)), "the report")?;
            }
        }
        Command::Prune { all, limit: most, json } => {
            let most = match (all, most) {
                (true, _) => 0,
                (false, Some(most)) => *most,
                (false, None) => limit()?,
            };
            print(report::freed(&cache.make_room(most, Duration::ZERO)?, *json)?, "the report")?;
        }
    }
    Ok(DONE)
}

/// A line for each image, and for each root file system that is no image's any more.
fn lines(cache: &Cache) -> anyhow::Result<Vec<Line>> {
    let stored = cache.stored()?;
    let mut lines = Vec::new();
    let mut named = BTreeSet::new();
    for record in cache.records()? {
        let Some(root) = stored.iter().find(|root| root.chain_id == record.chain_id) else { continue };
        named.insert(root.chain_id.clone());
        lines.push(Line::of(Some(&record), root)?);
    }
    for root in stored.iter().filter(|root| !named.contains(&root.chain_id)) {
        lines.push(Line::of(None, root)?);
    }
    Ok(lines)
}
