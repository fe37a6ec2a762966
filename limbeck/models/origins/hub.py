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


def _check_reach(source: str, remedy: str = "") -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_REACH_SECONDS)
    except Exception as error:  # as above
        raise _unreachable(source, error, remedy) from error


def _unreachable(source: str, error: Exception, remedy: str = "") -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    what = "send" if remedy else "get"
    place = f"'{source}' {'to' if remedy else 'from'} the Hugging Face hub"
    return UserError(f"Can't {what} {place} ({reason}); {remedy or REMEDY}.")


def upload(folder: Path, repository: str, *, is_private: bool, message: str) -> str:
    """Send all files of a folder to OWNER/NAME, which is made if there is none; its address.

    Raises UserError where the hub can't be reached, knows nobody of this machine, or refuses.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    remedy = "the files are there to be sent again"
    _check_reach(repository, remedy)
    hub = HfApi()
    try:
        if get_token() is None:
            raise LocalTokenNotFoundError
        hub.create_repo(repository, private=is_private, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except LocalTokenNotFoundError as error:
        raise UserError(
            f"The hub knows nobody here; log in with 'hf auth login' ({remedy})."
        ) from error
    except HfHubHTTPError as error:
        reason = (str(error.server_message or error).splitlines() or ["no reason given"])[0]
        raise UserError(
            f"The hub does not take {repository}: {reason}. See that the name's owner is you and "
            f"that your token may write ({remedy})."
        ) from error
    return f"{hub.endpoint}/{repository}"
