"""Files of the Hugging Face hub: from the cache, else fetched, else a quick and plain error."""

from pathlib import Path

from limbeck.errors import UserError


class AbsentError(UserError):
    """A repository or folder is known not to have a file."""


REMEDY = "pass a file that you have instead, such as --teacher path/to/weights.safetensors"

# The hub's own client tries six times (23 s) before it gives up on a missing network.
_REACH_SECONDS = 5.0


def fetch(repository: str, names: tuple[str, ...], source: str) -> Path:
    """The local path of the first of the files ``names`` that the repository has.

    ``repository`` is OWNER/NAME, with @REVISION if wanted; ``source`` names it in errors. What is
    in the cache is used without asking the hub. Raises UserError within seconds where the hub can't
    be reached, and where it has no such repository, or does not let us read it; AbsentError where
    it has none of the files.
    """
    # Imported here: it takes a third of a second, and weights files need no hub.
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, _, revision = repository.partition("@")
    where = {"repo_id": name, "revision": revision or None}
    try:
        for file in names:
            try:
                return Path(hf_hub_download(filename=file, local_files_only=True, **where))
            except LocalEntryNotFoundError:
                continue
        known = [try_to_load_from_cache(filename=file, **where) for file in names]
        if all(each is _CACHED_NO_EXIST for each in known):  # the hub has been asked before
            raise _absent(source, names)
        _check_reach(source)
        for file in names:
            try:
                return Path(hf_hub_download(filename=file, **where))
            except LocalEntryNotFoundError as error:
                raise _unreachable(source, error) from error
            except EntryNotFoundError:
                continue
    except HFValidationError as error:
        raise UserError(f"'{source}' is no name of a repository on the hub; {REMEDY}.") from error
    except GatedRepoError as error:
        raise UserError(
            f"'{source}' asks you to accept its terms first: do so on its page on the Hugging Face "
            f"hub and log in with 'hf auth login', or {REMEDY}."
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(
            f"The Hugging Face hub has no '{repository}' (or it is private); check the name, or "
            f"{REMEDY}."
        ) from error
    except UserError:
        raise
    except Exception as error:  # the client's errors differ from one major version to the next
        raise _unreachable(source, error) from error
    raise _absent(source, names)


def _absent(source: str, names: tuple[str, ...]) -> AbsentError:
    return AbsentError(f"'{source}' has none of the files {', '.join(names)}; {REMEDY}.")


def _check_reach(source: str) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_REACH_SECONDS)
    except Exception as error:  # as above
        raise _unreachable(source, error) from error


def _unreachable(source: str, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"Can't get '{source}' from the Hugging Face hub ({reason}); {REMEDY}.")
